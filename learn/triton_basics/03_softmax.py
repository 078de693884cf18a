"""03_softmax.py — softmax of rows in one kernel: each value is read once and written once.

    python 03_softmax.py        (GPU, or CPU through Triton's interpreter)
One idea: fusing maximum, exponential, sum and division moves 2 n values instead of about 8 n. Rows longer than a block
need the online form: a running maximum and a running sum.
"""
from lesson import begin, compare, device, end, fact, interpreted, milliseconds, poisoned, tl, torch, triton


@triton.jit
def softmax(x, out, n, BLOCK: tl.constexpr):
    """One program a row, the whole row in registers: n <= BLOCK."""
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    v = tl.load(x + row * n + j, mask=j < n, other=-float("inf"))
    e = tl.exp(v - tl.max(v, 0))
    tl.store(out + row * n + j, e / tl.sum(e, 0), mask=j < n)


@triton.jit
def softmax_long(x, out, n, BLOCK: tl.constexpr):
    """Any n: one pass finds the maximum and the sum, a second writes."""
    row = tl.program_id(0)
    m, l = -float("inf"), 0.0
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * n + j, mask=j < n, other=-float("inf"))
        m_new = tl.maximum(m, tl.max(v, 0))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(v - m_new), 0)
        m = m_new
    for start in range(0, n, BLOCK):
        j = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * n + j, mask=j < n, other=-float("inf"))
        tl.store(out + row * n + j, tl.exp(v - m) / l, mask=j < n)


def main():
    begin("Triton 03: softmax")
    for rows, n in ((3, 1), (5, 100), (4, 1024), (2, 1500)):
        for scale, what in ((1, "normal"), (1e4, "at +-1e4")):
            x = torch.randn(rows, n, device=device) * scale
            want = torch.softmax(x.double(), -1)
            if n <= 1024:
                out = poisoned(rows, n)
                softmax[(rows,)](x, out, n, BLOCK=1024)
                compare(f"{rows} rows of {n}, {what}", out, want, 3e-7)
            out = poisoned(rows, n)
            softmax_long[(rows,)](x, out, n, BLOCK=256)
            compare(f"{rows} rows of {n}, {what}, in pieces of 256", out, want, 3e-7)
    fact("largest argument of exp", (x - x.amax(-1, keepdim=True)).max())
    if not interpreted:
        x = torch.randn(8192, 1024, device=device)
        out = poisoned(8192, 1024)
        bytes_moved = 2 * x.numel() * 4
        fused = milliseconds(lambda: softmax[(8192,)](x, out, 1024, BLOCK=1024))

        def by_hand():
            e = (x - x.amax(-1, keepdim=True)).exp()
            return e / e.sum(-1, keepdim=True)
        apart = milliseconds(by_hand)
        print(f"  fused {bytes_moved / fused * 1e-6:.0f} GB/s, {apart / fused:.1f} x as fast as separate steps")
    end()


if __name__ == "__main__":
    main()
