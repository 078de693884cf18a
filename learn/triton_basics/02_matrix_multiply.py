"""02_matrix_multiply.py — one program computes one tile of C; which tile is a map from program id to (row, column).

    python 02_matrix_multiply.py        (GPU, or CPU through Triton's interpreter)
One idea: the order of the programs decides what the cache still holds. Walking in groups of rows re-uses B's columns.
"""
from lesson import begin, compare, device, end, expect, fact, interpreted, milliseconds, poisoned, tl, torch, triton


@triton.jit
def tile_of(program, tiles_m, tiles_n, GROUP: tl.constexpr):
    """GROUP rows of tiles are walked column by column. GROUP = 1 is plain row order."""
    first_row = program // (GROUP * tiles_n) * GROUP
    rows = min(tiles_m - first_row, GROUP)
    inside = program % (GROUP * tiles_n)
    return first_row + inside % rows, inside // rows


@triton.jit
def matmul(a, b, c, stores, m, n, k, TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr):
    tiles_m, tiles_n = tl.cdiv(m, TILE), tl.cdiv(n, TILE)
    row, col = tile_of(tl.program_id(0), tiles_m, tiles_n, GROUP)
    i = row * TILE + tl.arange(0, TILE)[:, None]
    j = col * TILE + tl.arange(0, TILE)[None, :]
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, k, DEPTH):
        d = start + tl.arange(0, DEPTH)
        left = tl.load(a + i * k + d[None, :], mask=(i < m) & (d[None, :] < k), other=0.0)
        right = tl.load(b + d[:, None] * n + j, mask=(d[:, None] < k) & (j < n), other=0.0)
        total = tl.dot(left, right, total, input_precision="ieee")      # plain float32, not tf32
    inside = (i < m) & (j < n)
    tl.store(c + i * n + j, total, mask=inside)
    tl.atomic_add(stores + row * tiles_n + col, 1)


def run(a, b, group, tile=32):
    (m, k), n = a.shape, b.shape[1]
    c = poisoned(m, n)
    tiles = triton.cdiv(m, tile) * triton.cdiv(n, tile)
    stores = torch.zeros(tiles, dtype=torch.int32, device=device)
    matmul[(tiles,)](a, b, c, stores, m, n, k, TILE=tile, DEPTH=32, GROUP=group)
    return c, stores


def distinct_tiles(order, window):
    """Input tiles that `window` consecutive programs need: fewer = more from the cache."""
    needs = [len({("a", r) for r, _ in part} | {("b", c) for _, c in part})
             for part in (order[s:s + window] for s in range(0, len(order) - window + 1, window))]
    return sum(needs) / len(needs)


def order(tiles, group):
    """The same map in plain Python, for counting."""
    out = []
    for program in range(tiles * tiles):
        first = program // (group * tiles) * group
        rows = min(tiles - first, group)
        out.append((first + program % (group * tiles) % rows, program % (group * tiles) // rows))
    return out


def main():
    begin("Triton 02: matrix multiply")
    for m, n, k in ((33, 65, 129), (64, 64, 64), (1, 1, 1)):
        a, b = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
        for group in (1, 3):
            c, stores = run(a, b, group)
            compare(f"{m} x {n} x {k}, groups of {group}", c, a.double() @ b.double(), 4e-7 * k)
            expect(bool((stores == 1).all()), "every output tile was stored exactly once")
    every = sorted((r, c) for r in range(32) for c in range(32))
    expect(all(sorted(order(32, g)) == every for g in (1, 3, 8)), "the map reaches every tile once")
    plain, grouped = (distinct_tiles(order(32, g), 64) for g in (1, 8))
    print(f"\n  64 programs in flight on 32 x 32 tiles need {plain:.0f} row and column strips in row order, "
          f"{grouped:.0f} in groups of 8")
    fact("strips in row order", plain)
    fact("strips in groups of 8", grouped)
    expect(grouped < plain / 2, "grouping halves what the cache must hold")
    if not interpreted:
        a, b = torch.randn(4096, 4096, device=device), torch.randn(4096, 4096, device=device)
        for group in (1, 8):
            ms = milliseconds(lambda: run(a, b, group, 64))
            print(f"  4096, groups of {group}: {2 * 4096 ** 3 / ms * 1e-9:.1f} TFLOP/s (float32)")
    end()


if __name__ == "__main__":
    main()
