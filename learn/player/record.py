"""record.py — run naive, flash v1, v2 and causal v2 and write what they load, compute and store into the
player page.

    python3 record.py [--check]        writes index.html beside this file; --check: fails if it is out of date
The events come from the lessons themselves (learn/flash_attention/*.py): every far-memory access and every
softmax step.
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "flash_attention"))
import numpy as np  # noqa: E402

import flash_v1  # noqa: E402
import flash_v2  # noqa: E402
import naive  # noqa: E402
from lesson import Far, data, oracle  # noqa: E402

ROWS = KEYS = 256
DIM, TILE = 64, 64


class Recorder(Far):
    """Far memory that remembers every access as [what, tensor, first row, rows, bytes]."""

    def __init__(self, q, k, v):
        super().__init__()
        self.events, self.names, self.keep = [], {}, []
        for name, array in (("Q", q), ("K", k), ("V", v)):
            self.name(array, name)

    def name(self, array, name):
        self.names[id(array)] = name
        self.keep.append(array)

    def place(self, part):
        array = part if part.base is None else part.base
        if id(array) not in self.names:
            new = {(ROWS, KEYS): "S", (ROWS, DIM): "O"}.get(array.shape)
            if new is None:
                new = "l" if "m" in self.names.values() else "m"
            self.name(array, new)
        offset = part.__array_interface__["data"][0] - array.__array_interface__["data"][0]
        return self.names[id(array)], offset // (array.strides[0]), part.shape[0]

    def load(self, part):
        self.events.append(["load", *self.place(part), part.nbytes])
        return super().load(part)

    def store(self, part, values):
        super().store(part, values)
        self.events.append(["store", *self.place(part), part.nbytes])


def record(module, causal):
    q, k, v = data("rising", ROWS, KEYS, DIM)
    far = Recorder(q, k, v)
    step = getattr(module, "softmax_step", None)

    def watched(s, vj, o, m, l):
        result = step(s, vj, o, m, l)
        i = next(e for e in reversed(far.events) if e[1] == "Q")
        j = next(e for e in reversed(far.events) if e[1] == "K")
        far.events.append(["step", i[2], j[2], round(float(result[1][0, 0]), 3),
                           round(float(result[2][0, 0]), 3)])
        return result
    if step:
        module.softmax_step = watched
    try:
        out, _ = module.attention(q, k, v, causal, far)
    finally:
        if step:
            module.softmax_step = step
    error = float(np.abs(out - oracle(q, k, v, causal)[0]).max())
    assert error <= 1e-5, error
    return {"events": far.events, "bytes": far.bytes}


def page():
    traces = {"naive": record(naive, False), "flash v1": record(flash_v1, False),
              "flash v2": record(flash_v2, False), "flash v2, causal": record(flash_v2, True)}
    facts = {"rows": ROWS, "keys": KEYS, "dim": DIM, "tile": TILE, "traces": traces}
    template = (HERE / "template.html").read_text()
    table = "".join(f"<tr><td>{name}</td><td>{t['bytes']}</td>"
                    f"<td>{sum(e[0] == 'load' for e in t['events'])}</td>"
                    f"<td>{sum(e[0] == 'store' for e in t['events'])}</td></tr>"
                    for name, t in traces.items())
    page = template.replace("/*TRACE*/null", json.dumps(facts, separators=(",", ":")))
    return page.replace("<!--TABLE-->", table)


def main():
    html, target = page(), HERE / "index.html"
    if "--check" in sys.argv:
        current = target.exists() and target.read_text() == html
        print("index.html is current" if current else "index.html is stale: python3 learn/player/record.py")
        sys.exit(not current)
    target.write_text(html)
    print(f"{target.name}: {len(html)} bytes")


main()
