"""Loads what training has left: an exported file, or the tokenizer of a run."""

import json
import os

import torch
from safetensors import safe_open

import tokenizers
import transformers

PREFIX = {"llamagen": ("gpt.", "vq."), "var": ("var.", "vae.")}


def load(path):
    """Reads an exported file: family, transformer, tokenizer, metadata."""
    with safe_open(path, "pt") as f:
        meta = f.metadata()
        raw = {k: f.get_tensor(k) for k in f.keys()}
    state = {}
    for key, value in raw.items():
        if key.endswith(".scale"):
            continue
        state[key] = value.float() if value.dtype != torch.int8 else value.float() * raw[key + ".scale"][:, None]
    family, c = meta["system"], json.loads(meta["config"])
    front, back = PREFIX[family]
    if family == "llamagen":
        transformer = transformers.build(family, classes=c["num_classes"], vocab=c["vocab_size"], dim=c["dim"], layers=c["n_layer"],
                                         heads=c["n_head"], multiple_of=c["multiple_of"])
        tokenizer = tokenizers.build(family, ch=c["ch"], mult=c["encoder_ch_mult"], blocks=c["num_res_blocks"], z=c["z_channels"],
                                     codes=c["vocab_size"], dim=c["codebook_embed_dim"], groups=c["norm_groups"])
    else:
        transformer = transformers.build(family, classes=c["num_classes"], vocab=c["vocab"], code_dim=c["z_channels"],
                                         dim=c["embed_dim"], layers=c["depth"], heads=c["heads"], patch_nums=c["patch_nums"])
        tokenizer = tokenizers.build(family, ch=c["ch"], mult=c["ch_mult"], blocks=c["num_res_blocks"], codes=c["vocab"],
                                     dim=c["z_channels"], groups=c["norm_groups"], patch_nums=c["patch_nums"])
    transformer.load_state_dict({k[len(front):]: v for k, v in state.items() if k.startswith(front)})
    tokenizer.load_export({k[len(back):]: v for k, v in state.items() if k.startswith(back)})
    return family, transformer.eval(), tokenizer.eval(), {**meta, "config": c}


def tokenizer_of(path):
    """The tokenizer of a run's folder, with its averaged weights, or of an exported file; and its configuration."""
    if os.path.isdir(path):
        config = json.load(open(os.path.join(path, "config.json")))
        model = tokenizers.build(**config).eval()
        model.load_state_dict(torch.load(os.path.join(path, "last.pt"), weights_only=False)["average"])
    else:
        _, _, model, meta = load(path)
        c = meta["config"]
        config = {"dim": c.get("codebook_embed_dim", c["z_channels"]), "groups": c["norm_groups"]}
    return model.requires_grad_(False).to(memory_format=torch.channels_last), config
