"""01_vector_add.py — a Triton program is a block program: it works on a range of indices at once, with a mask for the tail.

    python 01_vector_add.py        (GPU, or CPU through Triton's interpreter)
One idea: the program id says which block; the mask says which of its elements exist.
"""
from lesson import begin, compare, device, end, expect, fact, milliseconds, poisoned, tl, torch, triton


@triton.jit
def add(x, y, out, visits, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    tl.store(out + i, tl.load(x + i, mask=inside) + tl.load(y + i, mask=inside), mask=inside)
    tl.atomic_add(visits + i, 1, mask=inside)           # for the lesson: who was here?


def main():
    begin("Triton 01: vector add")
    for n in (1, 1000, 4097):
        x, y = (torch.randn(n, device=device) for _ in range(2))
        out, visits = poisoned(n), torch.zeros(n, dtype=torch.int32, device=device)
        programs = triton.cdiv(n, 1024)
        add[(programs,)](x, y, out, visits, n, BLOCK=1024)
        compare(f"n = {n}", out, x.double() + y.double(), 5e-7)
        expect(bool((visits == 1).all()), "each element was visited exactly once")
    fact("programs for 4097", programs)
    n = 1 << 26
    if device == "cuda":
        x, y = (torch.randn(n, device=device) for _ in range(2))
        out, visits = poisoned(n), torch.zeros(n, dtype=torch.int32, device=device)
        ms = milliseconds(lambda: add[(triton.cdiv(n, 1024),)](x, y, out, visits, n, BLOCK=1024))
        copy = milliseconds(lambda: out.copy_(x))
        print(f"  {20 * n / ms * 1e-6:.0f} GB/s (with the visit counter), the device's copy: {8 * n / copy * 1e-6:.0f} GB/s")
    end()


if __name__ == "__main__":
    main()
