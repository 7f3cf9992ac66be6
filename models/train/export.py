"""Writes a tokenizer and a transformer into one safetensors file.

Tensors carry the official names under the prefixes `gpt.` and `vq.` (LlamaGen)
or `var.` and `vae.` (VAR). Everything is f16 except the linear layers of the
transformer: `X.weight` is int8 [out, in] and `X.weight.scale` f32 [out], and
row r of the layer is `weight[r] * scale[r]`.
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file

import data
import transformers
from saved import PREFIX, tokenizer_of

LINEAR = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight", "output.weight", "mat_qkv.weight",
          "proj.weight", "fc1.weight", "fc2.weight", "ada_lin.1.weight", "head.weight")
LICENSE = "Apache-2.0"
ATTRIBUTION = ("Trained on pictures of Noto Emoji, Copyright Google LLC, Apache License 2.0 "
               "(https://github.com/googlefonts/noto-emoji), composited on white at 64x64, taken from the npm package "
               "emoji-datasource-google 16.0.0 (MIT, Copyright (c) 2013 Cal Henderson). Flags are invented.")
SAMPLING = {"llamagen": {"cfg": 3.0, "temperature": 0.9, "top_k": 100, "top_p": 0.95},
            "var": {"cfg": 3.0, "temperature": 1.0, "top_k": 20, "top_p": 1.0}}


def quantise(weight):
    """int8 rows with one scale each; the scale is the one of a few with the least squared error."""
    best = None
    for clip in (1.0, 0.95, 0.9, 0.85):
        scale = weight.abs().amax(1).clamp_min(1e-8) * (clip / 127)
        q = (weight / scale[:, None]).round().clamp(-127, 127)
        error = (q * scale[:, None] - weight).square().sum(1)
        if best is None:
            best = [q, scale, error]
        else:
            better = error < best[2]
            best = [torch.where(better[:, None] if a.ndim == 2 else better, b, a) for a, b in zip(best, (q, scale, error))]
    return best[0].to(torch.int8), best[1]


def pack(family, transformer, tokenizer):
    front, back = PREFIX[family]
    out = {}
    for key, value in transformer.state_dict().items():
        if key.endswith(LINEAR):
            out[front + key], out[front + key + ".scale"] = quantise(value.float())
        else:
            out[front + key] = value.half()
    out.update({back + k: v.half() for k, v in tokenizer.export().items()})
    return {k: v.contiguous().clone() for k, v in out.items()}


def config_of(family, t, k):
    """Hyper-parameters under the keys of the official configurations, and how to sample."""
    mult = [1, 1, 2]
    if family == "llamagen":
        config = {"model_type": "c2i", "dim": t["dim"], "n_layer": t["layers"], "n_head": t["heads"], "multiple_of": 256,
                  "num_classes": t["classes"], "vocab_size": 512, "cls_token_num": 1, "block_size": 256, "rope_base": 10000,
                  "norm_eps": 1e-5, "codebook_embed_dim": k["dim"], "codebook_l2_norm": True, "ch": 32,
                  "encoder_ch_mult": mult, "decoder_ch_mult": mult, "z_channels": 32, "num_res_blocks": 1,
                  "cfg_interval": -1}
    else:
        config = {"patch_nums": t["patch_nums"], "vocab": 512, "z_channels": k["dim"], "ch": 32, "ch_mult": mult,
                  "num_res_blocks": 1, "depth": t["layers"], "embed_dim": t["dim"], "heads": t["heads"],
                  "attn_l2_norm": False, "shared_aln": True, "num_classes": t["classes"], "using_znorm": False,
                  "share_quant_resi": 4, "quant_resi": 0.5, "norm_eps": 1e-6}
    return {**config, "norm_groups": k["groups"], "image_size": 64, **SAMPLING[family]}


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("run", help="folder of the transformer's run")
    a.add_argument("tokenizer", help="folder of the tokenizer's run, or an exported file that has it")
    a.add_argument("file", help="the .safetensors file to write")
    a = a.parse_args()

    tokenizer, tokenizer_config = tokenizer_of(a.tokenizer)
    config = json.load(open(os.path.join(a.run, "config.json")))
    family = config["family"]
    transformer = transformers.build(**config).eval()
    saved = torch.load(os.path.join(a.run, "last.pt"), weights_only=False)
    transformer.load_state_dict(saved["average"])
    meta = {"system": family, "config": json.dumps(config_of(family, config, tokenizer_config)),
            "classes": json.dumps(data.CLASSES), "license": LICENSE, "attribution": ATTRIBUTION}
    save_file(pack(family, transformer, tokenizer), a.file + ".part", metadata=meta)
    os.replace(a.file + ".part", a.file)
    print(a.file, os.path.getsize(a.file), "bytes after", saved["step"], "steps:", saved["log"][-1])


if __name__ == "__main__":
    main()
