"""test_cli_cache.py — attn run on caches: contiguous, paged, DeepSeek's latent rows; new rows appended first,
with rotary.

    python3 tests/test_cli_cache.py build/attn
"""
import math
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from test_cli import Array, Case, attention, gaussian, read_npy, safetensors_bytes


def concatenated(cache, used, new, turn=lambda x, b, position: x):
    """[1, used[b] + rows, heads, dim] per sequence: the cache's rows in use, then the new ones, turned."""
    out = []
    for b, n in enumerate(used):
        _, _, heads, dim = cache.shape
        rows = [[[cache.at(b, j, h, d) for d in range(dim)] for h in range(heads)] for j in range(n)]
        rows += [[turn([new.at(b, i, h, d) for d in range(dim)], b, n + i) for h in range(heads)]
                 for i in range(new.shape[1])]
        out.append(Array((1, len(rows), heads, dim), [x for row in rows for head in row for x in head]))
    return out


def turned(x, cos, sin, position, interleaved):
    y, half = list(x), cos.shape[1]
    for r in range(half):
        a, b = (2 * r, 2 * r + 1) if interleaved else (r, r + half)
        c, s = cos.at(position, r), sin.at(position, r)
        y[a], y[b] = x[a] * c - x[b] * s, x[a] * s + x[b] * c
    return y


def sequence(x, b):
    size = len(x.values) // x.shape[0]
    return Array((1,) + x.shape[1:], x.values[b * size:(b + 1) * size])


class Caches(Case):
    used = [3, 5]

    def setUp(self):
        super().setUp()
        self.q = gaussian((2, 2, 4, 8), 1)
        self.cache = {"k": gaussian((2, 8, 2, 8), 2), "v": gaussian((2, 8, 2, 6), 3)}
        self.new = {"k": gaussian((2, 2, 2, 8), 4), "v": gaussian((2, 2, 2, 6), 5)}
        self.lengths = Array((2,), self.used, "i")

    def save(self, **tensors):
        pathlib.Path("in.safetensors").write_bytes(safetensors_bytes(tensors))

    def run_file(self, *words, **more):
        return self.attn("run", "--in", "in.safetensors", *words, "--causal", "--out", "o.npy", **more)

    def expect(self, turn=None, q=None):
        q, o, turn = q or self.q, read_npy("o.npy"), turn or (lambda x, b, position: x)
        k = concatenated(self.cache["k"], self.used, self.new["k"], turn)
        v = concatenated(self.cache["v"], self.used, self.new["v"])
        for b in range(2):
            last = self.used[b]
            want = attention(sequence(q, b), k[b], v[b], visible=lambda _, h, i, j: j <= last + i)[0]
            self.near(sequence(o, b), want)

    def pages(self, page=3):
        """The same cache as pages in the order 5, 0, 3 and 1, 4, 2; NaN wherever no token is."""
        order = [[5, 0, 3], [1, 4, 2]]
        pools = {}
        for name, x in self.cache.items():
            _, _, heads, dim = x.shape
            values = [math.nan] * (6 * page * heads * dim)
            for b in range(2):
                for j in range(self.used[b]):
                    at = (order[b][j // page] * page + j % page) * heads * dim
                    values[at:at + heads * dim] = [x.at(b, j, h, d) for h in range(heads) for d in range(dim)]
            pools[name + "_cache"] = Array((6, page, heads, dim), values)
        return {**pools, "block_table": Array((2, 3), sum(order, []), "i")}

    def test_contiguous(self):
        self.save(q=self.q, k_cache=self.cache["k"], v_cache=self.cache["v"], cache_seqlens=self.lengths,
                  k_new=self.new["k"], v_new=self.new["v"])
        before = pathlib.Path("in.safetensors").read_bytes()
        self.run_file()
        self.expect()
        self.assertEqual(pathlib.Path("in.safetensors").read_bytes(), before)

    def test_paged(self):
        self.save(q=self.q, cache_seqlens=self.lengths, k_new=self.new["k"], v_new=self.new["v"],
                  **self.pages())
        self.run_file()
        self.expect()

    def test_rotary(self):
        angles = [[p * 0.3 ** r for r in range(3)] for p in range(9)]
        cos = Array((9, 3), [math.cos(x) for row in angles for x in row])
        sin = Array((9, 3), [math.sin(x) for row in angles for x in row])
        self.save(q=self.q, cache_seqlens=self.lengths, k_new=self.new["k"], v_new=self.new["v"],
                  rotary_cos=cos, rotary_sin=sin, **self.pages())
        for pairs in ("half", "interleaved"):
            turn = lambda x, b, position: turned(x, cos, sin, position, pairs == "interleaved")
            q = Array(self.q.shape, [x for b in range(2) for i in range(2) for h in range(4)
                                     for x in turn([self.q.at(b, i, h, d) for d in range(8)], b,
                                                   self.used[b] + i)])
            self.run_file("--rotary", pairs)
            self.expect(turn, q)

    def test_cache_without_new_rows(self):
        self.save(q=self.q, cache_seqlens=self.lengths, **self.pages())
        self.run_file()
        for b in range(2):
            cut = lambda x: Array((1, self.used[b]) + x.shape[2:],
                                  sequence(x, b).values[:self.used[b] * math.prod(x.shape[2:])])
            last = self.used[b] - 2
            want = attention(sequence(self.q, b), cut(self.cache["k"]), cut(self.cache["v"]),
                             visible=lambda _, h, i, j: j <= last + i)[0]
            self.near(sequence(read_npy("o.npy"), b), want)

    def test_latent_cache(self):
        """kv_cache with --dv: V is the first columns of K; the new latent row is both."""
        latent, new = gaussian((2, 8, 1, 8), 7), gaussian((2, 2, 1, 8), 8)
        self.save(q=self.q, kv_cache=latent, cache_seqlens=self.lengths, k_new=new)
        self.run_file("--dv", 6)
        self.cache, self.new = {"k": latent}, {"k": new}
        first = lambda x: Array(x.shape[:3] + (6,), [x.at(b, j, h, d) for b in range(2)
                                                     for j in range(x.shape[1]) for h in range(1)
                                                     for d in range(6)])
        self.cache["v"], self.new["v"] = first(latent), first(new)
        self.expect()

    def test_an_empty_cache(self):
        self.used, self.lengths = [0, 0], Array((2,), [0, 0], "i")
        self.save(q=self.q, cache_seqlens=self.lengths, k_new=self.new["k"], v_new=self.new["v"],
                  **self.pages())
        self.run_file()
        self.expect()

    def refused(self, text, *words, code=2, **change):
        tensors = dict(q=self.q, k_cache=self.cache["k"], v_cache=self.cache["v"], cache_seqlens=self.lengths,
                       k_new=self.new["k"], v_new=self.new["v"])
        tensors.update(change)
        self.save(**{name: x for name, x in tensors.items() if x is not None})
        result = self.run_file(*words, code=code)
        self.assertIn(text, result.stderr)
        self.assertFalse(os.path.exists("o.npy"))

    def test_errors_name_culprit_and_remedy(self):
        cos = gaussian((9, 3), 6)
        self.refused('no tensor "seqused_kv": k_new goes behind the keys in the cache: cache_seqlens',
                     cache_seqlens=None)
        self.refused('no tensor "v_new": k_new needs the new values', v_new=None)
        self.refused('no tensor "k_new"', k_new=None)
        self.refused('no tensor "rotary_sin": rotary_cos goes with', rotary_cos=cos)
        self.refused("rotary_sin: shape", rotary_cos=cos, rotary_sin=gaussian((8, 3), 6), code=1)
        self.refused("rotary_cos: shape", rotary_cos=gaussian((9, 5), 6), rotary_sin=gaussian((9, 5), 6),
                     code=1)
        self.refused("k_new: shape [2, 2, 3, 8]: [2, rows, 2, 8] is expected",
                     k_new=gaussian((2, 2, 3, 8), 6), code=1)
        self.refused("v_new: shape", v_new=gaussian((2, 3, 2, 6), 6), code=1)
        self.refused("seqused_kv[1] = 7: the cache has kv_len = 8 slots a sequence, 2 new rows need 9",
                     cache_seqlens=Array((2,), [3, 7], "i"))
        self.refused("positions 5 .. 6, but the rotary tables have rotary_rows = 6",
                     rotary_cos=gaussian((6, 3), 6), rotary_sin=gaussian((6, 3), 6))
        pages = self.pages()
        pages["block_table"].values[1 + 3] = 6
        self.refused("block_table[1][1] = 6: page ids are 0 .. 5", **pages)
        self.refused("must have one type", k_new=gaussian((2, 2, 2, 8), 4, "e"), code=1)


if __name__ == "__main__":
    unittest.main()
