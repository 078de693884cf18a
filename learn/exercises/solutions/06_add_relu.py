"""Solution of exercise 06."""
from lesson import begin, compare, device, end, poisoned, tl, torch, triton


@triton.jit
def add_relu(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    s = tl.load(x + i, mask=inside, other=0.0) + tl.load(y + i, mask=inside, other=0.0)
    tl.store(out + i, tl.maximum(s, 0.0), mask=inside)


begin("Exercise 06: add and relu")
for n in (1, 1000, 4097):
    x, y = (torch.randn(n, device=device) for _ in range(2))
    out = poisoned(n + 64)
    add_relu[(triton.cdiv(n, 1024),)](x, y, out, n, BLOCK=1024)
    compare(f"n = {n}", out[:n], (x.double() + y.double()).clamp(min=0), 5e-7)
    compare(f"n = {n}, nothing written beyond", torch.isnan(out[n:]).float(), torch.ones(64, device=device), 0)
end()
