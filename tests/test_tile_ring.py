#!/usr/bin/env python3
"""test_tile_ring.py — the rings of flash_fwd_sm90 in a model: roles take turns at random, barriers count as mbarriers do.

Consumers finish a tile under the beginning of the next, and the producer brings the last V of a tile behind the
first K of the next. So a tile without keys may not take part: two in a row stop everybody. The model of a scheduler
that leaves records for them (as it once did) must stand still, the one that writes them by itself must not. It says
nothing about the kernel's code, only about the order that src/cuda/flash_fwd_sm90_feed.h relies on."""
import random
import sys

SLOTS = 3           # of records; as SM90_TILE_SLOTS
IDLE = 400          # turns without progress: nobody can go on


class Barrier:
    def __init__(self, arrivals):
        self.arrivals = self.left = arrivals
        self.phase = 0

    def arrive(self, times=1):
        for _ in range(times):
            self.left -= 1
            assert self.left >= 0
            if not self.left:
                self.left = self.arrivals
                self.phase += 1

    def wait(self, parity):
        while self.phase % 2 == parity:
            yield


class Ring:
    def __init__(self, size, parity):
        self.size, self.index, self.parity = size, 0, parity

    def next(self):
        self.index += 1
        if self.index == self.size:
            self.index, self.parity = 0, self.parity ^ 1


class Block:
    """tiles: their key tiles, in the order in which the scheduler takes them."""

    def __init__(self, tiles, keyless_by_scheduler, stages, warpgroups):
        self.tiles, self.alone, self.stages, self.warpgroups = tiles, keyless_by_scheduler, stages, warpgroups
        self.full = [Barrier(1) for _ in range(SLOTS)]
        self.empty = [Barrier(4 * warpgroups + 3) for _ in range(SLOTS)]
        self.wanted = Barrier(1)
        self.k_full, self.v_full = ([Barrier(1) for _ in range(stages)] for _ in range(2))
        self.k_empty = [Barrier(warpgroups) for _ in range(stages)]
        self.v_empty = [Barrier(warpgroups + 2) for _ in range(stages)]
        self.q_full, self.q_empty = ([Barrier(1) for _ in range(warpgroups)] for _ in range(2))
        self.records, self.written = [None] * SLOTS, []
        self.pending = [None] * warpgroups      # tile and place that a warpgroup has not finished

    def roles(self):
        return [self.schedule(), self.produce(), self.clean(0), self.clean(1),
                *(self.consume(w) for w in range(self.warpgroups))]

    def schedule(self):
        slot, wanted = Ring(SLOTS, 1), 0
        for tile, blocks in [*enumerate(self.tiles), (None, -1)]:
            if self.alone and blocks == 0:
                self.written.append(tile)
                continue
            yield from self.empty[slot.index].wait(slot.parity)
            self.records[slot.index] = tile, blocks
            self.full[slot.index].arrive()
            if blocks < 0:
                return
            slot.next()
            yield from self.wanted.wait(wanted)
            wanted ^= 1

    def produce(self):
        k, v, slot, q_parity, late = Ring(self.stages, 1), Ring(self.stages, 1), Ring(SLOTS, 0), 1, False
        while True:
            yield from self.full[slot.index].wait(slot.parity)
            _, blocks = self.records[slot.index]
            self.empty[slot.index].arrive()
            slot.next()
            if blocks == 0:
                self.wanted.arrive()
                continue
            for n in range(max(blocks, 1)):
                if n == max(0, blocks - 3):
                    self.wanted.arrive()
                if blocks > 0:
                    yield from self.k_empty[k.index].wait(k.parity)
                    self.k_full[k.index].arrive()
                    k.next()
                if late:
                    yield from self.v_empty[v.index].wait(v.parity)
                    self.v_full[v.index].arrive()
                    v.next()
                if blocks < 0:
                    return
                if n == 0:
                    for w in range(self.warpgroups):
                        yield from self.q_empty[w].wait(q_parity)
                        self.q_full[w].arrive()
                    q_parity ^= 1
                late = True

    def clean(self, warp):
        v, slot = Ring(self.stages, 0), Ring(SLOTS, 0)
        while True:
            yield from self.full[slot.index].wait(slot.parity)
            tile, blocks = self.records[slot.index]
            if blocks < 0:
                return
            if blocks == 0 and warp == 0:
                self.written.append(tile)
            for _ in range(blocks):
                yield from self.v_full[v.index].wait(v.parity)
                self.v_empty[v.index].arrive()
                v.next()
            self.empty[slot.index].arrive()
            slot.next()

    def consume(self, w):
        k, v, slot, q_parity = Ring(self.stages, 0), Ring(self.stages, 0), Ring(SLOTS, 0), 0

        def next_tile():
            while True:
                yield from self.full[slot.index].wait(slot.parity)
                here, record = slot.index, self.records[slot.index]
                slot.next()
                if record[1]:
                    return *record, here
                self.empty[here].arrive(4)

        def release_k(last):
            self.k_empty[k.index].arrive()
            if last:
                self.q_empty[w].arrive()
            k.next()

        def release_v():
            self.v_empty[v.index].arrive()
            v.next()

        tile, blocks, here = yield from next_tile()
        while blocks > 0:
            yield from self.q_full[w].wait(q_parity)
            q_parity ^= 1
            yield from self.k_full[k.index].wait(k.parity)
            if self.pending[w]:
                release_v()
                self.finish(w)
            release_k(blocks == 1)
            for n in range(1, blocks):
                yield from self.k_full[k.index].wait(k.parity)
                yield from self.v_full[v.index].wait(v.parity)
                release_k(n == blocks - 1)
                release_v()
            yield from self.v_full[v.index].wait(v.parity)
            self.pending[w] = tile, here
            tile, blocks, here = yield from next_tile()
        if self.pending[w]:
            self.finish(w)

    def finish(self, w):
        (tile, here), self.pending[w] = self.pending[w], None
        self.empty[here].arrive(4)
        if w == 0:
            self.written.append(tile)

    def state(self):
        groups = (self.full, self.empty, [self.wanted], self.k_full, self.k_empty, self.v_full, self.v_empty,
                  self.q_full, self.q_empty)
        return [(b.phase, b.left) for group in groups for b in group]

    def run(self, random):
        """True: every tile was written once. False: nobody can go on."""
        roles, idle = self.roles(), 0
        while roles:
            role, before = random.choice(roles), (self.state(), len(roles))
            try:
                next(role)
            except StopIteration:
                roles.remove(role)
            idle = idle + 1 if (self.state(), len(roles)) == before else 0
            if idle > IDLE:
                return False
        assert sorted(self.written) == list(range(len(self.tiles))), self.tiles
        return True


def main():
    dice = random.Random(1)
    stuck = {True: 0, False: 0}
    runs = 400
    for _ in range(runs):
        tiles = [dice.choice((0, 0, 0, 1, 2, 5)) for _ in range(dice.randint(1, 14))]
        stages, warpgroups = dice.choice((2, 3)), dice.choice((2, 3))
        for alone in stuck:
            stuck[alone] += not Block(tiles, alone, stages, warpgroups).run(dice)
    for tiles, goes_on in (([3, 0, 2], True), ([3, 0, 0, 2], False)):
        assert Block(tiles, False, 2, 2).run(dice) == goes_on, tiles
    print(f"{runs} orders of tiles: records for tiles without keys stop {stuck[False]}, none stop {stuck[True]}")
    return 0 if stuck[False] and not stuck[True] else 1


if __name__ == "__main__":
    sys.exit(main())
