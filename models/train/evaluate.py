"""Measures an exported file and draws from it: reconstruction, bits per token, copies, a sheet of samples."""

import argparse
import json
import os

import numpy as np
import torch

import data
import transformers
from saved import load
from train_tokenizer import evaluate
from train_transformer import encode_all


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("file")
    a.add_argument("--package", required=True, help="the unpacked npm package emoji-datasource-google")
    a.add_argument("--sheet", help="PNG of samples, one class per row")
    a.add_argument("--columns", type=int, default=12)
    a.add_argument("--seed", type=int, default=7)
    a.add_argument("--set", nargs="*", default=[], help="sampling settings, such as cfg=3 top_k=100")
    a.add_argument("--copies", type=int, default=0, help="how many encoded copies per picture to look for samples in")
    a = a.parse_args()

    torch.set_num_threads(1)
    pictures = data.load(a.package, os.path.join(os.path.dirname(os.path.abspath(a.package)), "noto.npz"))
    family, transformer, tokenizer, meta = load(a.file)
    held = np.flatnonzero(pictures.held & (pictures.weight == 1))
    figures = {"bytes": os.path.getsize(a.file), "held": evaluate(tokenizer, pictures, held),
               "held_in_class": evaluate(tokenizer, pictures, held[pictures.label[held] >= 0])}
    rows = encode_all(tokenizer, pictures, max(1, a.copies), min(a.copies, 2), seed=1)
    seen = transformers.inputs(family, rows["tokens"], tokenizer)
    plain = torch.from_numpy(pictures.weight[rows["picture"].numpy()] == 1)
    for name, index in (("held", torch.nonzero(rows["held"])[:, 0]), ("train", torch.nonzero(~rows["held"] & plain)[:, 0])):
        index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:96]]
        mean, _ = transformers.bits(transformer, rows["labels"][index], rows["tokens"][index], seen[index])
        figures[f"bits_{name}"] = round(mean, 3)
    if a.sheet:
        c = meta["config"]
        settings = {k: c[k] for k in ("cfg", "temperature", "top_k", "top_p")}
        settings.update({k: (int if k == "top_k" else float)(v) for k, v in (s.split("=") for s in a.set)})
        labels = torch.arange(len(data.CLASSES)).repeat_interleave(a.columns)
        tokens = transformers.generate(family, transformer, tokenizer, labels,
                                       generator=torch.Generator().manual_seed(a.seed), **settings)
        with torch.no_grad():
            data.grid(data.to_pixels(tokenizer.decode(tokens)), a.columns).save(a.sheet)
        figures["sampling"] = settings
        if a.copies:
            # The largest share of equal tokens between a sample and any encoded training picture.
            train = rows["tokens"][~rows["held"]]
            same = torch.stack([(t == train).float().mean(1).max() for t in tokens])
            figures["copies"] = {"mean": round(same.mean().item(), 3), "max": round(same.max().item(), 3),
                                 "over_0.8": round((same > 0.8).float().mean().item(), 3)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
