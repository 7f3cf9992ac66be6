"""Trains LlamaGen's or VAR's transformer on the tokens of the labelled pictures, on one CPU thread or a GPU."""

import argparse
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import data
import transformers
from common import Run, atomic_save
from saved import load, tokenizer_of


@torch.no_grad()
def encode_all(tokenizer, pictures, copies, tone_copies, seed=0):
    """Tokens of the labelled pictures: plain first, then mirrored and shifted copies."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in np.flatnonzero(pictures.label >= 0):
        full = pictures.weight[i] == 1
        n = 1 if pictures.held[i] else copies if full else tone_copies
        if pictures.held[i] and not full:
            continue
        for c in range(n):
            plain = c == 0 and full
            picture = pictures.pixels[i] if plain else data.augment(pictures, i, rng, 2)
            rows.append((picture, i, pictures.weight[i] / n))
    tokens = []
    for j in range(0, len(rows), 64):
        tokens.append(tokenizer.encode(data.to_tensor(np.stack([r[0] for r in rows[j:j + 64]]))))
    index = np.array([r[1] for r in rows])
    return {"tokens": torch.cat(tokens), "labels": torch.from_numpy(pictures.label[index]),
            "held": torch.from_numpy(pictures.held[index]), "picture": torch.from_numpy(index),
            "weight": torch.tensor([r[2] for r in rows])}


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("family", choices=["llamagen", "var"])
    a.add_argument("--package", required=True, help="the unpacked npm package emoji-datasource-google")
    a.add_argument("--tokenizer", required=True, help="folder of the tokenizer's run, or an exported file that has it")
    a.add_argument("--start", help="an exported file whose transformer is trained on, rather than a new one")
    a.add_argument("--out", required=True, help="folder of this run; resumes if it holds a checkpoint")
    a.add_argument("--minutes", type=float, default=60)
    a.add_argument("--batch", type=int, default=16)
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--dim", type=int, default=192)
    a.add_argument("--layers", type=int, default=4)
    a.add_argument("--heads", type=int, default=3)
    a.add_argument("--dropout", type=float, default=0.1)
    a.add_argument("--class-dropout", type=float, default=0.1)
    a.add_argument("--copies", type=int, default=10, help="augmented copies of a picture that are encoded")
    a.add_argument("--balance", type=float, default=0.5,
                   help="classes are drawn by their number of pictures to the power of 1 less this: 1 draws all alike")
    a.add_argument("--f32", action="store_false", dest="bf16", help="no bf16, which is slow without avx512_bf16")
    a.add_argument("--device", default="cpu", help="cpu, or what else PyTorch knows, such as cuda")
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    os.makedirs(a.out, exist_ok=True)
    pictures = data.load(a.package, os.path.join(os.path.dirname(os.path.abspath(a.package)), "noto.npz"))
    tokenizer, _ = tokenizer_of(a.tokenizer)
    cache = os.path.join(a.out, "tokens.pt")
    if not os.path.exists(cache):
        atomic_save(encode_all(tokenizer, pictures, a.copies, 2), cache)
    rows = torch.load(cache)
    seen = transformers.inputs(a.family, rows["tokens"], tokenizer)
    if a.family == "var":
        seen = seen.half()
    seen = seen.to(a.device)
    rows = {name: values.to(a.device) for name, values in rows.items()}
    held = rows["held"]
    held_index, train_index = torch.nonzero(held)[:, 0], torch.nonzero(~held)[:, 0]
    weight, label = rows["weight"][train_index], rows["labels"][train_index]
    mass = torch.zeros(len(data.CLASSES), device=a.device).index_add_(0, label, weight.float())
    weight = weight / mass[label] ** a.balance
    print(len(train_index), "rows, effective pictures per class", [round(m, 1) for m in mass.tolist()], flush=True)
    probe = train_index[torch.randperm(len(train_index), generator=torch.Generator().manual_seed(0))[:64].to(a.device)]

    config = {"classes": len(data.CLASSES), "dim": a.dim, "layers": a.layers, "heads": a.heads}
    if a.family == "var":
        config["patch_nums"], config["code_dim"] = list(tokenizer.patch_nums), tokenizer.dim
    model = transformers.build(a.family, **config, dropout=a.dropout)
    if a.start:
        model.load_state_dict(load(a.start)[1].state_dict())
    model.to(a.device)
    print(sum(q.numel() for q in model.parameters()), "parameters", flush=True)
    json.dump({"family": a.family, **config}, open(os.path.join(a.out, "config.json"), "w"))
    decay = [q for q in model.parameters() if q.ndim == 2]
    plain = [q for q in model.parameters() if q.ndim != 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0}],
                                  lr=a.lr, betas=(0.9, 0.95))
    run = Run(a.out, model, optimizer, a.minutes, a.lr, final=0.03, warmup=100)
    torch.manual_seed(a.seed + run.step)

    total = None
    while run.running():
        run.begin_step()
        pick = train_index[torch.multinomial(weight, a.batch, replacement=True)]
        labels = rows["labels"][pick]
        labels = torch.where(torch.rand(a.batch, device=a.device) < a.class_dropout, len(data.CLASSES), labels)
        given = seen[pick] if a.family == "llamagen" else seen[pick].float()
        with torch.autocast(torch.device(a.device).type, dtype=torch.bfloat16, enabled=a.bf16):
            logits = model(labels, given)
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows["tokens"][pick].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # Not read here: that would wait for the device at every step.
        total = loss.detach() if total is None else total.lerp(loss.detach(), 0.02)
        if run.end_step():
            def figure(index):
                s = seen[index] if a.family == "llamagen" else seen[index].float()
                return round(transformers.bits(run.average.model, rows["labels"][index], rows["tokens"][index], s)[0], 3)
            run.save(loss=round(total.item() / math.log(2), 3), held=figure(held_index), train=figure(probe))


if __name__ == "__main__":
    main()
