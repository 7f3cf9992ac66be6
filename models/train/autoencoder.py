"""The convolutional encoder and decoder that LlamaGen and VAR share.

Both official tokenizers descend from the same VQGAN network and differ only in
the names of their tensors. The modules here carry LlamaGen's names;
`to_var_names` and `from_var_names` translate to VAR's, where the three projections of an
attention block are one tensor and the decoder counts its levels from the
finest one.
"""

import torch
import torch.nn.functional as F
from torch import nn


def norm(channels, groups):
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1 = norm(c_in, groups)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(c_out, groups)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """One head over all places of the grid."""

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    """Halves (padding only at the right and bottom edge) or doubles the grid."""

    def __init__(self, channels, up):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def _middle(channels, groups):
    return nn.ModuleList([ResBlock(channels, channels, groups), Attention(channels, groups),
                          ResBlock(channels, channels, groups)])


class _Level(nn.Module):
    def __init__(self, c_in, c_out, blocks, attention, groups):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(c_out, groups) for _ in range(blocks if attention else 0))

    def forward(self, x):
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    def __init__(self, ch, mult, blocks, z, groups):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        c = ch
        for i, m in enumerate(mult):
            last = i == len(mult) - 1
            level = _Level(c, ch * m, blocks, last, groups)
            c = ch * m
            if not last:
                level.downsample = Resample(c, up=False)
            self.conv_blocks.append(level)
        self.mid = _middle(c, groups)
        self.norm_out = norm(c, groups)
        self.conv_out = nn.Conv2d(c, z, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, ch, mult, blocks, z, groups):
        super().__init__()
        c = ch * mult[-1]
        self.conv_in = nn.Conv2d(z, c, 3, padding=1)
        self.mid = _middle(c, groups)
        self.conv_blocks = nn.ModuleList()
        for i in reversed(range(len(mult))):
            level = _Level(c, ch * mult[i], blocks + 1, i == len(mult) - 1, groups)
            c = ch * mult[i]
            if i > 0:
                level.upsample = Resample(c, up=True)
            self.conv_blocks.append(level)
        self.norm_out = norm(c, groups)
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in self.conv_blocks:
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _var_name(key, levels):
    """VAR's name of a tensor, and which third of that tensor it is (None: all of it)."""
    part, third = key.split("."), None
    if part[0] in ("encoder", "decoder"):
        if part[1] == "conv_blocks":
            level = int(part[2])
            part[1:3] = ["down", str(level)] if part[0] == "encoder" else ["up", str(levels - 1 - level)]
            part = ["block" if p == "res" else p for p in part]
        elif part[1] == "mid":
            part[2] = ("block_1", "attn_1", "block_2")[int(part[2])]
        if part[-2] in ("q", "k", "v"):
            third = "qkv".index(part[-2])
            part[-2] = "qkv"
    return ".".join(part), third


def _levels(keys):
    return 1 + max(int(k.split(".")[2]) for k in keys if k.startswith(("encoder.conv_blocks.", "encoder.down.")))


def to_var_names(state):
    out = {}
    for key, value in state.items():
        name, third = _var_name(key, _levels(state))
        # q, k and v follow each other in a state dict, so appending keeps their order.
        out[name] = value if not third else torch.cat([out[name], value])
    return {k: v.contiguous() for k, v in out.items()}


def from_var_names(state, keys):
    """The inverse: the tensors of `state` under the given names of this module."""
    out = {}
    for key in keys:
        name, third = _var_name(key, _levels(keys))
        if name in state:
            out[key] = state[name] if third is None else state[name].chunk(3)[third]
    return out
