"""LlamaGen's class-conditional transformer: one token after the other in raster order."""

import torch
import torch.nn.functional as F
from torch import nn


class RmsNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        h = x.float()
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def rotary_table(grid, head_dim, base=10000.0):
    """cos and sin [1 + grid * grid, head_dim / 2]; first half rows, second half columns.

    The class token's row is all zeros, as in the official code: its query and
    key vanish, and the class reaches the other places through its value only.
    """
    freqs = base ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    angle = torch.arange(grid).float()[:, None] * freqs
    both = torch.cat([angle[:, None].expand(-1, grid, -1), angle[None].expand(grid, -1, -1)], -1).flatten(0, 1)
    zero = torch.zeros(1, head_dim // 2)
    return torch.cat([zero, both.cos()]), torch.cat([zero, both.sin()])


def rotate(x, cos, sin):
    """Rotates neighbouring pairs of channels; x is [b, heads, places, head_dim]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x, cos, sin, cache=None):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.wqkv(x).chunk(3, -1))
        q, k = rotate(q, cos, sin).type_as(v), rotate(k, cos, sin).type_as(v)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        h = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        return self.dropout(self.wo(h.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    def __init__(self, dim, multiple_of, dropout):
        super().__init__()
        hidden = -(-int(8 * dim / 3) // multiple_of) * multiple_of
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class Layer(nn.Module):
    def __init__(self, dim, heads, multiple_of, dropout):
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.feed_forward = FeedForward(dim, multiple_of, dropout)
        self.attention_norm = RmsNorm(dim)
        self.ffn_norm = RmsNorm(dim)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class LlamaGen(nn.Module):
    def __init__(self, classes, vocab=512, dim=192, layers=4, heads=3, grid=16, multiple_of=256, dropout=0.1, **_):
        super().__init__()
        self.classes, self.places = classes, grid * grid
        self.cls_embedding = nn.Module()
        self.cls_embedding.embedding_table = nn.Embedding(classes + 1, dim)  # the last row: no class
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(dim, heads, multiple_of, dropout) for _ in range(layers))
        self.norm = RmsNorm(dim)
        self.output = nn.Linear(dim, vocab, bias=False)
        cos, sin = rotary_table(grid, dim // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)
        nn.init.zeros_(self.output.weight)

    def forward(self, labels, tokens):
        """Logits of every place, each from the class and the tokens before it."""
        x = torch.cat([self.cls_embedding.embedding_table(labels)[:, None], self.tok_embeddings(tokens[:, :-1])], 1)
        x = self.dropout(x)
        cos, sin = self.cos[:x.shape[1]], self.sin[:x.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.output(self.norm(x))

    @torch.no_grad()
    def generate(self, labels, cfg, pick):
        """Draws token after token; `pick` turns guided logits [b, vocab] into tokens."""
        both = torch.cat([labels, torch.full_like(labels, self.classes)])
        x = self.cls_embedding.embedding_table(both)[:, None]
        caches, out = [[] for _ in self.layers], []
        for place in range(self.places):
            for layer, cache in zip(self.layers, caches):
                x = layer(x, self.cos[place:place + 1], self.sin[place:place + 1], cache)
            given, free = self.output(self.norm(x))[:, 0].float().chunk(2)
            token = pick(free + cfg * (given - free))
            out.append(token)
            x = self.tok_embeddings(torch.cat([token, token]))[:, None]
        return torch.stack(out, 1)
