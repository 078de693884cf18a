"""Solution of exercise 09."""
from lesson import begin, compare, device, end, poisoned, tl, torch, triton


@triton.jit
def rms_norm(x, weight, out, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    v = tl.load(x + row * n + j, mask=j < n, other=0.0)
    y = v / tl.sqrt(tl.sum(v * v, 0) / n + eps)
    tl.store(out + row * n + j, y * tl.load(weight + j, mask=j < n, other=0.0), mask=j < n)


begin("Exercise 09: RMS norm")
for rows, n in ((1, 1), (3, 100), (4, 1024)):
    x, weight = torch.randn(rows, n, device=device), torch.randn(n, device=device)
    out = poisoned(rows, n)
    rms_norm[(rows,)](x, weight, out, n, 1e-5, BLOCK=1024)
    d = x.double()
    compare(f"{rows} rows of {n}", out, d / (d.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double(), 1e-5)
end()
