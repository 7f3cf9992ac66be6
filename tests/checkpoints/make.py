"""Writes the checkpoints of this folder: tiny models with LlamaGen's and VAR's official state-dict names.

Every tensor is a view of one small storage per file, so that the files stay small and the reader has to follow
offsets, strides and shared storages. Values are a formula of name and place, which `tests/models/weights.rs` repeats.
"""

import argparse
import collections
import os

import torch

POOL = 12800  # elements of the storage that a file's tensors share
HERE = os.path.dirname(os.path.abspath(__file__))


def pool(dtype):
    """(7919 i mod 251 - 125) / 256 for i = 0, 1, ...: exact in every float type used here."""
    return ((torch.arange(POOL) * 7919 % 251 - 125) / 256).to(dtype)


def views(shapes, dtype):
    """A view per tensor, at an offset that its name tells; matrices of odd offset lie transposed."""
    storage, out = pool(dtype), collections.OrderedDict()
    for name, shape in shapes.items():
        count = torch.Size(shape).numel()
        offset = sum(name.encode()) * 31 % (POOL - count + 1)
        flat = storage[offset:offset + count]
        transposed = len(shape) == 2 and offset % 2 == 1
        out[name] = flat.view(shape[::-1]).t() if transposed else flat.view(shape)
    return out


def gpt(dim=64, layers=2, hidden=170, codes=128, classes=10):
    yield "cls_embedding.embedding_table.weight", [classes + 1, dim]
    yield "tok_embeddings.weight", [codes, dim]
    for layer in range(layers):
        at = f"layers.{layer}."
        yield at + "attention.wqkv.weight", [3 * dim, dim]
        yield at + "attention.wo.weight", [dim, dim]
        yield at + "feed_forward.w1.weight", [hidden, dim]
        yield at + "feed_forward.w3.weight", [hidden, dim]
        yield at + "feed_forward.w2.weight", [dim, hidden]
        yield at + "attention_norm.weight", [dim]
        yield at + "ffn_norm.weight", [dim]
    yield "norm.weight", [dim]
    yield "output.weight", [codes, dim]


def conv(name, out, into, kernel):
    yield name + ".weight", [out, into, kernel, kernel]
    yield name + ".bias", [out]


def norm(name, channels):
    yield name + ".weight", [channels]
    yield name + ".bias", [channels]


def res(name, channels):
    yield from norm(name + ".norm1", channels)
    yield from conv(name + ".conv1", channels, channels, 3)
    yield from norm(name + ".norm2", channels)
    yield from conv(name + ".conv2", channels, channels, 3)


def attention(name, channels, projections):
    yield from norm(name + ".norm", channels)
    for projection in projections:
        yield from conv(f"{name}.{projection}", channels * 3 // len(projections), channels, 1)
    yield from conv(name + ".proj_out", channels, channels, 1)


def autoencoder(family, latents, channels=32, levels=2):
    """Two levels of 32 channels: the fewest that the official 32 groups can normalise."""
    llamagen = family == "llamagen"
    mid = ["0", "1", "2"] if llamagen else ["block_1", "attn_1", "block_2"]
    blocks = "res" if llamagen else "block"
    projections = ["q", "k", "v"] if llamagen else ["qkv"]
    for half in ["encoder", "decoder"]:
        into, out = (3, latents) if half == "encoder" else (latents, 3)
        level_list = "conv_blocks" if llamagen else {"encoder": "down", "decoder": "up"}[half]
        yield from conv(half + ".conv_in", channels, into, 3)
        # The decoder of LlamaGen counts its levels from the coarsest, that of VAR from the finest.
        for level in range(levels):
            at = f"{half}.{level_list}.{level}"
            coarsest = level == (0 if llamagen and half == "decoder" else levels - 1)
            yield from res(f"{at}.{blocks}.0", channels)
            if half == "decoder":
                yield from res(f"{at}.{blocks}.1", channels)
            if coarsest:
                yield from attention(at + ".attn.0", channels, projections)
                if half == "decoder":
                    yield from attention(at + ".attn.1", channels, projections)
            if half == "encoder" and level < levels - 1:
                yield from conv(at + ".downsample.conv", channels, channels, 3)
            if half == "decoder" and level != (levels - 1 if llamagen else 0):
                yield from conv(at + ".upsample.conv", channels, channels, 3)
        yield from res(f"{half}.mid.{mid[0]}", channels)
        yield from attention(f"{half}.mid.{mid[1]}", channels, projections)
        yield from res(f"{half}.mid.{mid[2]}", channels)
        yield from norm(half + ".norm_out", channels)
        yield from conv(half + ".conv_out", out, channels, 3)


def vq(codes=128, code_dim=8, latents=32):
    yield from autoencoder("llamagen", latents)
    yield "quantize.embedding.weight", [codes, code_dim]
    yield from conv("quant_conv", code_dim, latents, 1)
    yield from conv("post_quant_conv", latents, code_dim, 1)


def var(dim=16, heads=2, depth=2, codes=128, code_dim=8, classes=10, places=680, scales=10):
    yield "pos_start", [1, 1, dim]
    yield "pos_1LC", [1, places, dim]
    yield "word_embed.weight", [dim, code_dim]
    yield "word_embed.bias", [dim]
    yield "class_emb.weight", [classes + 1, dim]
    yield "lvl_embed.weight", [scales, dim]
    for block in range(depth):
        at = f"blocks.{block}."
        yield at + "attn.scale_mul_1H11", [1, heads, 1, 1]
        yield at + "attn.q_bias", [dim]
        yield at + "attn.v_bias", [dim]
        yield at + "attn.zero_k_bias", [dim]
        yield at + "attn.mat_qkv.weight", [3 * dim, dim]
        for layer, [out, into] in {"attn.proj": [dim, dim], "ffn.fc1": [4 * dim, dim], "ffn.fc2": [dim, 4 * dim],
                                   "ada_lin.1": [6 * dim, dim]}.items():
            yield f"{at}{layer}.weight", [out, into]
            yield f"{at}{layer}.bias", [out]
    for layer, [out, into] in {"head_nm.ada_lin.1": [2 * dim, dim], "head": [codes, dim]}.items():
        yield layer + ".weight", [out, into]
        yield layer + ".bias", [out]


def vae(codes=128, code_dim=8):
    yield from autoencoder("var", code_dim)
    yield "quantize.embedding.weight", [codes, code_dim]
    for index in range(4):
        yield from conv(f"quantize.quant_resi.qresi_ls.{index}", code_dim, code_dim, 3)
    yield from conv("quant_conv", code_dim, code_dim, 3)
    yield from conv("post_quant_conv", code_dim, code_dim, 3)


class Call:
    """What a file that means harm does: its pickle calls a function."""

    def __reduce__(self):
        return os.system, ("touch smalti-was-here",)


def save(name, value, legacy):
    path = os.path.join(HERE, name)
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    print(name, os.path.getsize(path), "bytes")


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    for form in ["zip", "legacy"]:
        legacy = form == "legacy"
        # Each form has the other half type where it can.
        first, second = (torch.float16, torch.bfloat16) if legacy else (torch.bfloat16, torch.float16)

        # As a training script saves: beside the weights an optimiser's state, counters and arguments.
        model = views(dict(gpt()), first)
        moments = {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(1).expand(128, 64)}}
        save(f"gpt_{form}.pt", {"model": model, "optimizer": {"state": moments}, "steps": 5,
                                "args": argparse.Namespace(gpt_model="tiny", lr=1e-4)}, legacy)
        model = views(dict(vq()), second)
        model["quantize.codebook_used"] = torch.zeros(1).expand(65536)
        average = {"decoder.mid.0.conv1.weight": torch.zeros(1).expand(32, 32, 3, 3)}
        save(f"vq_{form}.pt", {"ema": average, "model": model}, legacy)

        # VAR's files hold nothing but a state dict, buffers included.
        model = views(dict(var()), first)
        model["lvl_1L"] = torch.zeros(1, dtype=torch.int64).expand(1, 680)
        model["attn_bias_for_masking"] = torch.zeros(1).expand(1, 1, 680, 680)
        save(f"var_{form}.pth", model, legacy)
        model = views(dict(vae()), second)
        model["quantize.ema_vocab_hit_SV"] = torch.zeros(1).expand(10, 128)
        save(f"vae_{form}.pth", model, legacy)

        save(f"call_{form}.pt", {"model": {"norm.weight": torch.ones(1)}, "hook": Call()}, legacy)


if __name__ == "__main__":
    main()
