"""VAR's transformer: all tokens of a scale at once, one scale after the other."""

import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.heads, self.scale = heads, 0.25 / (dim // heads) ** 0.5
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, mask=None, cache=None):
        qkv = F.linear(x, self.mat_qkv.weight, torch.cat([self.q_bias, self.zero_k_bias, self.v_bias]))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, -1))
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.type_as(q), scale=self.scale)
        return self.dropout(self.proj(h.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden, dropout):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.fc2(F.gelu(self.fc1(x), approximate="tanh")))


def bare_norm(x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class Block(nn.Module):
    """Attention and MLP under the shared form of adaptive layer norm."""

    def __init__(self, dim, heads, dropout):
        super().__init__()
        self.attn = Attention(dim, heads, dropout)
        self.ffn = FeedForward(dim, 4 * dim, dropout)
        # Order of the six rows: two gains of the branches, two scales, two shifts.
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, dim) / dim ** 0.5)

    def forward(self, x, condition, mask=None, cache=None):
        gain1, gain2, scale1, scale2, shift1, shift2 = (self.ada_gss + condition).unbind(2)
        x = x + gain1 * self.attn(bare_norm(x) * (1 + scale1) + shift1, mask, cache)
        return x + gain2 * self.ffn(bare_norm(x) * (1 + scale2) + shift2)


class Var(nn.Module):
    def __init__(self, classes, vocab=512, code_dim=8, dim=192, layers=4, heads=3, patch_nums=(1, 2, 3, 5, 9, 16), dropout=0.1, **_):
        super().__init__()
        self.classes, self.patch_nums = classes, tuple(patch_nums)
        sides = [p * p for p in self.patch_nums]
        places = sum(sides)
        std = (1 / dim / 3) ** 0.5
        self.word_embed = nn.Linear(code_dim, dim)
        self.class_emb = nn.Embedding(classes + 1, dim)  # the last row: no class
        self.pos_start = nn.Parameter(std * torch.randn(1, 1, dim))
        self.pos_1LC = nn.Parameter(std * torch.randn(1, places, dim))
        self.lvl_embed = nn.Embedding(len(sides), dim)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.head_nm = nn.Module()
        self.head_nm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.head = nn.Linear(dim, vocab)
        self.dropout = nn.Dropout(dropout)

        level = torch.cat([torch.full((n,), i) for i, n in enumerate(sides)])
        self.register_buffer("level", level, persistent=False)
        mask = torch.where(level[:, None] >= level[None], 0.0, -torch.inf)
        self.register_buffer("mask", mask, persistent=False)

        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.trunc_normal_(m.weight, std=std)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        for e in (self.class_emb, self.lvl_embed):
            nn.init.trunc_normal_(e.weight, std=std)
        # The official scores are small (a quarter of the usual scale): begin with larger queries and keys.
        for b in self.blocks:
            b.attn.mat_qkv.weight.data[:2 * dim].mul_(2)
            b.ada_gss.data[:, :, :2].add_(0.5)
            b.ada_gss.data[:, :, 2:].mul_(0.5)
        self.shared_ada_lin[1].weight.data.mul_(0.5)
        self.head.weight.data.mul_(0.02)
        self.head_nm.ada_lin[1].weight.data.mul_(0.5)

    def condition(self, labels):
        c = self.class_emb(labels)
        return c, self.shared_ada_lin(c).unflatten(-1, (1, 6, -1))

    def positions(self):
        return self.lvl_embed(self.level)[None] + self.pos_1LC

    def logits(self, x, c):
        scale, shift = self.head_nm.ada_lin(c).unflatten(-1, (1, 2, -1)).unbind(2)
        return self.head(bare_norm(x.float()) * (1 + scale) + shift)

    def forward(self, labels, teacher_input):
        """Logits of all places; `teacher_input` is the latent so far at every scale but the first."""
        c, condition = self.condition(labels)
        x = torch.cat([c[:, None] + self.pos_start, self.word_embed(teacher_input)], 1) + self.positions()
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, condition, self.mask)
        return self.logits(x, c)

    @torch.no_grad()
    def generate(self, labels, cfg, pick, tokenizer):
        """Draws scale after scale; the guidance grows linearly from 0 to `cfg` with the scales."""
        n, scales = len(labels), len(self.patch_nums)
        c, condition = self.condition(torch.cat([labels, torch.full_like(labels, self.classes)]))
        positions = self.positions()
        x = c[:, None] + self.pos_start + positions[:, :1]
        caches, latent, out, done = [[] for _ in self.blocks], 0, [], 1
        for scale, side in enumerate(self.patch_nums):
            for block, cache in zip(self.blocks, caches):
                x = block(x, condition, None, cache)
            given, free = self.logits(x, c).float().chunk(2)
            t = cfg * scale / (scales - 1)
            out.append(pick(((1 + t) * given - t * free).flatten(0, 1)).view(n, -1))
            latent = latent + tokenizer.contribution(out[-1], scale)
            if scale + 1 < scales:
                side = self.patch_nums[scale + 1]
                seen = F.interpolate(latent, size=(side, side), mode="area").flatten(2).transpose(1, 2)
                x = (self.word_embed(seen) + positions[:, done:done + side * side]).repeat(2, 1, 1)
                done += side * side
        return torch.cat(out, 1)
