"""Trains one of the two tokenizers on the Noto pictures, on one CPU thread."""

import argparse
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

import data
import tokenizers
from common import Run


def reconstruction_loss(y, x):
    """L1 and L2, edges, coarser copies, and the colour differences R-G and B-G.

    Without the last term small models learn brightness first and paint greens
    and purples brown.
    """
    def chroma(p):
        return p[:, 0::2] - p[:, 1:2]

    def slope(p):
        return p[..., 1:] - p[..., :-1], p[..., 1:, :] - p[..., :-1, :]

    loss = F.l1_loss(y, x) + 0.5 * F.mse_loss(y, x)
    loss = loss + 0.5 * sum(F.l1_loss(a, b) for a, b in zip(slope(y), slope(x))) / 2
    for level in range(4):
        if level:
            y, x = F.avg_pool2d(y, 2), F.avg_pool2d(x, 2)
            loss = loss + 0.3 * F.l1_loss(y, x)
        if level < 3:
            loss = loss + 0.3 * F.l1_loss(chroma(y), chroma(x))
    return loss


@torch.no_grad()
def evaluate(model, pictures, index):
    """L1 (of a range of 2), PSNR in dB and the perplexity of the codes."""
    l1, se, tokens = 0.0, 0.0, []
    for chunk in np.array_split(index, -(-len(index) // 32)):
        x = data.to_tensor(pictures.pixels[chunk])
        tokens.append(model.encode(x))
        y = model.decode(tokens[-1]).clamp(-1, 1)
        l1 += (y - x).abs().mean().item() * len(chunk)
        se += (y - x).square().mean().item() * len(chunk)
    p = torch.bincount(torch.cat([t.flatten() for t in tokens])).float()
    p = p[p > 0] / p.sum()
    return {"l1": round(l1 / len(index), 4), "psnr": round(10 * math.log10(4 * len(index) / se), 2),
            "perplexity": round(torch.exp(-(p * p.log()).sum()).item(), 1)}


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("family", choices=["llamagen", "var"])
    a.add_argument("--package", required=True, help="the unpacked npm package emoji-datasource-google")
    a.add_argument("--out", required=True, help="folder of this run; resumes if it holds a checkpoint")
    a.add_argument("--minutes", type=float, default=25)
    a.add_argument("--batch", type=int, default=16)
    a.add_argument("--lr", type=float, default=1.5e-3)
    a.add_argument("--groups", type=int, default=32, help="groups of every GroupNorm; the official code has 32")
    a.add_argument("--dim", type=int, default=8)
    a.add_argument("--in-class", type=float, default=3.0, help="how much oftener pictures of the classes are drawn")
    a.add_argument("--seed", type=int, default=1)
    a = a.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    rng = np.random.default_rng()
    pictures = data.load(a.package, os.path.join(os.path.dirname(os.path.abspath(a.package)), "noto.npz"))
    train = np.flatnonzero(~pictures.held)
    p = pictures.weight[train] * np.where(pictures.label[train] >= 0, a.in_class, 1)
    p = p / p.sum()
    held = np.flatnonzero(pictures.held & (pictures.weight == 1))
    held_class = held[pictures.label[held] >= 0]
    seen = rng.permutation(train[(pictures.label[train] >= 0) & (pictures.weight[train] == 1)])[:64]

    config = {"groups": a.groups, "dim": a.dim}
    model = tokenizers.build(a.family, **config).to(memory_format=torch.channels_last)
    print(sum(q.numel() for q in model.parameters()), "parameters", flush=True)
    decay = [q for q in model.parameters() if q.requires_grad and q.ndim > 1]
    plain = [q for q in model.parameters() if q.requires_grad and q.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0}],
                                  lr=a.lr, betas=(0.9, 0.95))
    run = Run(a.out, model, optimizer, a.minutes, a.lr)
    json.dump({"family": a.family, **config}, open(os.path.join(a.out, "config.json"), "w"))

    total = None
    while run.running():
        run.begin_step()
        colours = 0.5 if run.progress < 0.75 else 0.25
        batch = [data.augment(pictures, i, rng, 4, colours) for i in rng.choice(train, a.batch, p=p)]
        x = data.to_tensor(np.stack(batch)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, quantiser = model(x, run.step)
        loss = reconstruction_loss(y.float(), x) + quantiser
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total = loss.item() if total is None else 0.98 * total + 0.02 * loss.item()
        if run.end_step():
            best = run.average.model
            run.save(loss=round(total, 4), quantiser=round(quantiser.item(), 4), held=evaluate(best, pictures, held),
                     held_in_class=evaluate(best, pictures, held_class), seen=evaluate(best, pictures, seen))
            with torch.no_grad():
                show = np.concatenate([held_class[:16], seen[:16]])
                y = best.decode(best.encode(data.to_tensor(pictures.pixels[show])))
            both = np.stack([pictures.pixels[show], data.to_pixels(y)], 1).reshape(-1, 64, 64, 3)
            data.grid(both, 16).save(os.path.join(a.out, "reconstructions.png"))


if __name__ == "__main__":
    main()
