"""06_add_relu.py — exercise: max(x + y, 0) for any n; the tail must not be touched
Fill the hole, then: learn check 06 --my FILE
"""
from lesson import begin, compare, device, end, poisoned, tl, torch, triton


@triton.jit
def add_relu(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.zeros((BLOCK,), tl.float32), mask=i < n)       # hole: load, add, maximum with 0


begin("Exercise 06: add and relu")
for n in (1, 1000, 4097):
    x, y = (torch.randn(n, device=device) for _ in range(2))
    out = poisoned(n + 64)
    add_relu[(triton.cdiv(n, 1024),)](x, y, out, n, BLOCK=1024)
    compare(f"n = {n}", out[:n], (x.double() + y.double()).clamp(min=0), 5e-7)
    compare(f"n = {n}, nothing written beyond", torch.isnan(out[n:]).float(), torch.ones(64, device=device), 0)
end()
