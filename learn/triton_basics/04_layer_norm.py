"""04_layer_norm.py — (x - mean) / sqrt(variance + eps) * weight + bias, one pass over memory.

    python 04_layer_norm.py        (GPU, or CPU through Triton's interpreter)
One idea: while a row is in registers every statistic of it is free. Subtract the mean before squaring: the formula
E[x^2] - E[x]^2 loses everything when the mean is large.
"""
from lesson import begin, compare, device, end, expect, fact, interpreted, milliseconds, poisoned, tl, torch, triton


@triton.jit
def layer_norm(x, weight, bias, out, n, eps, CAREFUL: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    j = tl.arange(0, BLOCK)
    inside = j < n
    v = tl.load(x + row * n + j, mask=inside, other=0.0)
    mean = tl.sum(v, 0) / n
    if CAREFUL:
        d = tl.where(inside, v - mean, 0.0)
        variance = tl.sum(d * d, 0) / n
    else:
        variance = tl.sum(v * v, 0) / n - mean * mean
    y = (v - mean) / tl.sqrt(variance + eps)
    tl.store(out + row * n + j, y * tl.load(weight + j, mask=inside) + tl.load(bias + j, mask=inside), mask=inside)


def reference(x, weight, bias, eps):
    x = x.double()
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean(-1, keepdim=True) + eps).sqrt() * weight.double() + bias.double()


def run(x, weight, bias, careful=True):
    out = poisoned(*x.shape)
    layer_norm[(x.shape[0],)](x, weight, bias, out, x.shape[1], 1e-5, CAREFUL=careful, BLOCK=1024)
    return out


def main():
    begin("Triton 04: layer norm")
    for rows, n in ((1, 1), (3, 100), (4, 1024)):
        weight, bias = torch.randn(n, device=device), torch.randn(n, device=device)
        x = torch.randn(rows, n, device=device)
        compare(f"{rows} rows of {n}", run(x, weight, bias), reference(x, weight, bias, 1e-5), 1e-5)
    n = 512
    weight, bias = torch.ones(n, device=device), torch.zeros(n, device=device)
    x = torch.randn(4, n, device=device) + 3000                # small spread on a large mean
    want = reference(x, weight, bias, 1e-5)
    compare("mean 3000, spread 1", run(x, weight, bias), want, 5e-3)
    short = (run(x, weight, bias, careful=False).double() - want).abs().max()
    fact("E[x^2]", (x.double() ** 2).mean())
    print(f"       with E[x^2] - E[x]^2 the error would be {float(short):.1e}")
    expect(not short <= 5e-3, "the shortcut is wrong there, and the check sees it")
    if not interpreted:
        x = torch.randn(8192, 1024, device=device)
        weight, bias = torch.randn(1024, device=device), torch.randn(1024, device=device)
        ms = milliseconds(lambda: run(x, weight, bias))
        print(f"  {2 * x.numel() * 4 / ms * 1e-6:.0f} GB/s")
    end()


if __name__ == "__main__":
    main()
