#!/usr/bin/env python3
"""test_early_start.py — decode_fwd_sm80 and its merge start before the kernels before them have ended: a model.

A run is three kernels: one makes the schedule, the main one reads it, the merge adds up parts. Blocks take turns
at random; a kernel's blocks may start when all of the one before have let them, and `wait` ends when that one has
ended. A multiprocessor's L1 keeps what was read until a block there waits (the cautious assumption). Every run
must use its own schedule, and none may begin before the one before has ended. The rules that docs/decode-and-mla.md
names keep that; with any one of them broken some order of turns must show it. It says nothing about the kernels'
code, only about the order that they rely on."""
import random
import sys

MULTIPROCESSORS, RUNS = 3, 5
BLOCKS = {"schedule": 1, "main": 2, "merge": 3}
WORDS = ("stretch", "length", "slots")          # of the schedule, written one by one
RULES = ("second look", "one warp reads", "past L1", "merge lets the schedule come first", "one idle block stays")


class Wrong(Exception):
    pass


class Kernel:
    def __init__(self, before, roles):
        self.before, self.roles = before, roles
        self.let_go, self.ended, self.started = set(), set(), set()

    def has_ended(self):
        return len(self.ended) == len(self.roles)

    def may_start(self):
        b = self.before
        return b is None or len(b.let_go | b.ended) == len(b.roles)


class Card:
    """Memory behind L2, an L1 for each multiprocessor. `broken`: the rule that is not kept."""

    def __init__(self, broken):
        self.broken, self.memory, self.kernels = broken, dict.fromkeys(WORDS, -1), []
        self.l1 = [{} for _ in range(MULTIPROCESSORS)]
        self.main_of, before = {}, None
        for run in range(RUNS):
            for name in ("schedule", "main", "merge"):
                before = Kernel(before, [getattr(self, name)] * BLOCKS[name])
                before.run, before.name = run, name
                self.kernels.append(before)
                if name == "main":
                    self.main_of[run] = before

    def read(self, place, word, past_l1=True):
        if past_l1:
            return self.memory[word]
        return self.l1[place].setdefault(word, self.memory[word])

    def wait(self, kernel, place):
        while kernel.before and not kernel.before.has_ended():
            yield
        self.l1[place] = {}

    # ---- the three kernels; a yield is a turn of somebody else ----

    def schedule(self, kernel, block, place):
        kernel.let_go.add(block)
        yield
        yield from self.wait(kernel, place)
        for word in WORDS:
            self.memory[word] = kernel.run
            yield

    def main(self, kernel, block, place):
        if self.broken == "merge lets the schedule come first":
            kernel.let_go.add(block)
        early = True
        while True:
            known = {}
            for word in WORDS:
                known[word] = self.read(place, word)
                yield
            if self.broken == "one warp reads" and self.read(place, "stretch") != known["stretch"]:
                raise Wrong("a warp uses an item that nobody has opened")
            if early:
                yield from self.wait(kernel, place)
            kernel.let_go.add(block)
            yield
            if not early or self.broken == "second look":
                break
            early = False
            if known == {word: self.read(place, word) for word in WORDS}:
                break
        before = self.main_of.get(kernel.run - 1)
        if before and not before.has_ended():
            raise Wrong("a run overtakes the one before")
        if set(known.values()) != {kernel.run}:
            raise Wrong("a run uses another one's schedule")
        for _ in range(random.randint(0, 6)):
            yield

    def merge(self, kernel, block, place):
        kernel.let_go.add(block)
        yield
        slots = self.read(place, "slots", past_l1=self.broken != "past L1")
        yield
        idle = kernel.run % 2 == 0              # every other run leaves nothing to merge
        if idle and (block or self.broken == "one idle block stays"):
            return
        yield from self.wait(kernel, place)
        if slots != kernel.run:
            raise Wrong("a merge uses another one's slots")

    # ---- turns ----

    def startable(self, running):
        """Blocks that may start, and where: the main kernel's need a multiprocessor without another one."""
        taken = {place for kernel, _, place, _ in running if kernel.name == "main"}
        for kernel in self.kernels:
            if not kernel.may_start():
                return
            for block in set(range(len(kernel.roles))) - kernel.started:
                for place in range(MULTIPROCESSORS):
                    if kernel.name != "main" or place not in taken:
                        yield kernel, block, place

    def run(self, dice):
        running = []
        while not self.kernels[-1].has_ended():
            choices = list(self.startable(running))
            if choices and (not running or dice.random() < 0.3):
                kernel, block, place = dice.choice(choices)
                kernel.started.add(block)
                running.append((kernel, block, place, kernel.roles[block](kernel, block, place)))
                continue
            turn = dice.choice(running)
            if next(turn[3], self) is self:
                turn[0].ended.add(turn[1])
                running.remove(turn)


def orders_that_fail(broken, orders):
    failed = {}
    for seed in range(orders):
        random.seed(seed)
        try:
            Card(broken).run(random.Random(seed))
        except Wrong as e:
            failed[str(e)] = failed.get(str(e), 0) + 1
    return failed


def main():
    orders, bad = 400, False
    for broken in (None, *RULES):
        failed = orders_that_fail(broken, orders)
        name = f"without: {broken}" if broken else "all rules kept"
        print(f"{name:44s} {sum(failed.values()):4d} of {orders} orders fail" +
              "".join(f"; {n} x {what}" for what, n in failed.items()))
        bad |= bool(failed) != bool(broken)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
