"""Writes a dump of DAR: what the paper says, in float64 and without a cache, for the Rust side to compare with.

No weights are published, so none are read: they are drawn, rounded to f16. A token is the number of cumulative
probabilities that its uniform reaches; the uniforms lie in the middle half of their token's interval, and greedy choices
lead by 2e-3, so that tokens compare exactly.
"""

import argparse
import json

import numpy as np
from safetensors.numpy import save_file

CONFIG = dict(dim=64, n_layer=2, n_head=2, vocab_size=48, code_dim=8, num_classes=6, block_size=16, rope_base=10000,
              norm_eps=1e-5, cfg=2.5, temperature=1.0, top_k=0, top_p=1.0)
STEPS = {(0, 1): 0, (1, 0): 1, (1, -1): 2, (-1, 1): 3}


def zigzag(side):
    """There and back along the anti-diagonals, the first step to the right."""
    cells, (row, column) = [], (0, 0)
    up = True
    while len(cells) < side * side:
        cells.append((row, column))
        if up:
            if column == side - 1:
                row, up = row + 1, False
            elif row == 0:
                column, up = column + 1, False
            else:
                row, column = row - 1, column + 1
        elif row == side - 1:
            column, up = column + 1, True
        elif column == 0:
            row, up = row + 1, True
        else:
            row, column = row + 1, column - 1
    return cells


def weights(rng, c):
    hidden, dim = 96, c["dim"]
    shapes = {"tok_embeddings.weight": (c["vocab_size"], c["code_dim"]), "tok_projection.weight": (dim, c["code_dim"]),
              "tok_projection.bias": (dim,), "direction_embeddings.weight": (4, dim),
              "cls_embedding.embedding_table.weight": (c["num_classes"] + 1, dim), "norm.weight": (dim,),
              "output.weight": (c["vocab_size"], dim)}
    for layer in range(c["n_layer"]):
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in {
            "attention_norm": (dim,), "ffn_norm": (dim,), "attention.wqkv": (3 * dim, dim), "attention.wo": (dim, dim),
            "feed_forward.w1": (hidden, dim), "feed_forward.w2": (dim, hidden), "feed_forward.w3": (hidden, dim)}.items()}
    drawn = {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape)
        if len(shape) == 1:
            value = 1 + 0.1 * value if "norm" in name else 0.1 * value
        elif "embedding" not in name:
            value *= 1.5 * shape[1] ** -0.5
        drawn[name] = value.astype(np.float16)
    return drawn


class Dar:
    def __init__(self, config, drawn):
        self.c = config
        self.w = {name: value.astype(np.float64) for name, value in drawn.items()}
        self.side = int(config["block_size"] ** 0.5)
        self.cells = zigzag(self.side)
        next_cells = self.cells[1:] + self.cells[-1:]
        self.angles = np.zeros((1 + len(self.cells), config["dim"] // config["n_head"] // 2))
        quarter = self.angles.shape[1] // 4
        for place, (here, after) in enumerate(zip(self.cells, next_cells)):
            for pair in range(4 * quarter):
                coordinate = (*here, *after)[pair // quarter]
                self.angles[1 + place, pair] = coordinate * config["rope_base"] ** (-(pair % quarter) / quarter)

    def embed(self, places, tokens):
        """Tokens of the places, of which none is the last."""
        x = self.w["tok_embeddings.weight"][tokens] @ self.w["tok_projection.weight"].T + self.w["tok_projection.bias"]
        for index, place in enumerate(places):
            (row, column), (next_row, next_column) = self.cells[place], self.cells[place + 1]
            x[index] += self.w["direction_embeddings.weight"][STEPS[next_row - row, next_column - column]]
        return x

    def norm(self, x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["norm_eps"]) * self.w[name + ".weight"]

    def turned(self, x):
        cos, sin = np.cos(self.angles[: len(x)]), np.sin(self.angles[: len(x)])
        y = np.empty_like(x)
        y[:, 0::2] = x[:, 0::2] * cos - x[:, 1::2] * sin
        y[:, 1::2] = x[:, 0::2] * sin + x[:, 1::2] * cos
        return y

    def logits(self, label, tokens):
        """After the class and after each of the tokens, which are in the order of the places."""
        x = self.w["cls_embedding.embedding_table.weight"][label][None]
        x = np.concatenate([x, self.embed(range(len(tokens)), np.array(tokens, int))])
        dim, heads = self.c["dim"], self.c["n_head"]
        for layer in range(self.c["n_layer"]):
            at = f"layers.{layer}."
            q, k, v = np.split(self.norm(x, at + "attention_norm") @ self.w[at + "attention.wqkv.weight"].T, 3, -1)
            h = np.zeros_like(x)
            for head in range(heads):
                of_head = slice(head * dim // heads, (head + 1) * dim // heads)
                scores = self.turned(q[:, of_head]) @ self.turned(k[:, of_head]).T / (dim // heads) ** 0.5
                scores[np.triu_indices(len(x), 1)] = -np.inf
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                h[:, of_head] = scores / scores.sum(-1, keepdims=True) @ v[:, of_head]
            x = x + h @ self.w[at + "attention.wo.weight"].T
            h = self.norm(x, at + "ffn_norm")
            gate, up = (h @ self.w[f"{at}feed_forward.w{n}.weight"].T for n in (1, 3))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.w[at + "feed_forward.w2.weight"].T
        return self.norm(x, "norm") @ self.w["output.weight"].T

    def generate(self, label, choose):
        tokens, steps = [], []
        for _ in self.cells:
            cond, uncond = (self.logits(row, tokens)[-1] for row in (label, self.c["num_classes"]))
            steps.append(uncond + self.c["cfg"] * (cond - uncond))
            tokens.append(choose(steps[-1]))
        return tokens, np.stack(steps)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out")
    out = arguments.parse_args().out
    rng = np.random.default_rng(4)
    c = CONFIG
    drawn = weights(rng, c)
    model = Dar(c, drawn)
    raster = [row * model.side + column for row, column in model.cells]
    labels = rng.integers(c["num_classes"], size=2)
    tokens = rng.integers(c["vocab_size"], size=(2, len(raster)))

    def greedy(logits):
        best = np.sort(logits)[-2:]
        assert best[1] - best[0] > 2e-3, "draw other weights"
        return int(logits.argmax())

    uniforms = []

    def sampled(logits):
        p = np.exp(logits - logits.max())
        ends = np.cumsum(p / p.sum())
        token = int((ends <= rng.random()).sum())
        start = ends[token - 1] if token else 0.0
        uniforms.append(start + (ends[token] - start) * rng.uniform(0.25, 0.75))
        return token

    def in_raster(rows):
        return np.array(rows)[:, np.argsort(raster)]

    tensors = {"w." + name: value for name, value in drawn.items()}
    tensors |= {"in.labels": labels, "in.tokens": tokens, "out.cells": np.array(raster),
                "out.rope_cos_sin": np.stack([np.cos(model.angles), np.sin(model.angles)], -1),
                "out.teacher_logits": np.stack([model.logits(label, row[raster][:-1]) for label, row in zip(labels, tokens)])}
    for name, choose in ("greedy", greedy), ("sampled", sampled):
        runs = [model.generate(label, choose) for label in labels]
        prefix = "" if name == "sampled" else "greedy_"
        tensors[f"out.{prefix}guided_logits"] = np.stack([steps for _, steps in runs])
        tensors[f"out.{name}_tokens"] = in_raster([tokens for tokens, _ in runs])
    tensors["in.uniforms"] = np.array(uniforms).reshape(2, -1)
    kinds = {"i": np.int32, "f": np.float32}
    tensors = {name: value if name.startswith("w.") else np.ascontiguousarray(value.astype(kinds[value.dtype.kind]))
               for name, value in tensors.items()}
    about = {"out.cells": "raster cell of each place in the order of generation",
             "out.teacher_logits": "[B, places, V] in the order of generation",
             "out.guided_logits": "[B, places, V] in the order of generation; tokens are in raster order",
             "w.tok_embeddings.weight": "the tokenizer's codebook",
             "w.direction_embeddings.weight": "right, down, down and left, up and right"}
    save_file(tensors, out, {"system": "dar", "config": json.dumps(c), "about": json.dumps(about),
                             "source": "own reference after the paper, float64"})


if __name__ == "__main__":
    main()
