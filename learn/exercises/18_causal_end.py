"""18_causal_end.py — exercise: where does the loop over keys end for a causal tile of queries?
Fill the hole, then: learn check 18 --my FILE
"""
import flash_v2
from lesson import Far, data, expect


def end(i, rows_here, rows, keys):
    """The first key that no query of rows i .. i + rows_here - 1 sees (0 .. keys); query r sees keys <= r + keys - rows."""
    return keys       # hole: right, but nothing is skipped


for rows, keys in ((256, 256), (64, 512), (300, 100)):
    q, k, v = data("random", rows, keys, 16)
    far = Far()
    flash_v2.attention(q, k, v, True, far)
    tiles = sum(-(-end(i, min(64, rows - i), rows, keys) // 64) for i in range(0, rows, 64))
    wrong = [i for i in range(0, rows, 64) if end(i, min(64, rows - i), rows, keys) !=
             sum(any(j <= r + keys - rows for r in range(i, min(i + 64, rows))) for j in range(keys))]
    expect(not wrong, f"{rows} queries, {keys} keys: {tiles} tiles are visited, of {-(-rows // 64) * -(-keys // 64)}")
from lesson import end as lesson_end
lesson_end()
