"""Writes what an exported file computes here, for another implementation to compare with.

One safetensors file: `in.*` are inputs, `out.*` outputs; floats f32, integers
i32. All arithmetic is f32 with the int8 rows multiplied out. Greedy decoding
uses the guidance of the file's own configuration.
"""

import argparse
import json
import os

import numpy as np
import torch
from safetensors.torch import save_file

import data
from saved import load


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("file")
    a.add_argument("out")
    a.add_argument("--package", required=True, help="the unpacked npm package emoji-datasource-google")
    a.add_argument("--labels", type=int, nargs="+", default=[0, 5])
    a = a.parse_args()

    torch.set_num_threads(1)
    pictures = data.load(a.package, os.path.join(os.path.dirname(os.path.abspath(a.package)), "noto.npz"))
    family, model, tokenizer, meta = load(a.file)
    labels = torch.tensor(a.labels)
    pick = [np.flatnonzero((pictures.label == l) & (pictures.weight == 1))[0] for l in a.labels]
    image = data.to_tensor(pictures.pixels[pick])
    gaps, steps = [], []

    def greedy(logits):
        best = logits.topk(2)[0]
        gaps.append((best[:, 0] - best[:, 1]).min().item())
        steps.append(logits)
        return logits.argmax(-1)

    with torch.no_grad():
        tokens = tokenizer.encode(image)
        # LlamaGen compares directions, so its latent is taken before the normalisation.
        latent = tokenizer.quant_conv(tokenizer.encoder(image))
        out = {"in.image": image, "in.labels": labels, "out.latent": latent, "out.tokens_of_image": tokens,
               "out.reconstruction": tokenizer.decode(tokens)}
        cfg = meta["config"]["cfg"]
        if family == "llamagen":
            out["out.teacher_logits"] = model(labels, tokens)
            drawn = model.generate(labels, cfg, greedy)
            guided = torch.stack(steps, 1)
        else:
            out["in.teacher_input"] = tokenizer.teacher_input(tokens)
            out["out.reconstruction"] = out["out.reconstruction"].clamp(-1, 1)
            out["out.teacher_logits"] = model(labels, out["in.teacher_input"])
            drawn = model.generate(labels, cfg, greedy, tokenizer)
            guided = torch.cat([s.view(len(labels), -1, s.shape[-1]) for s in steps], 1)
        picture = tokenizer.decode(drawn)
        out["out.greedy_tokens"], out["out.greedy_guided_logits"] = drawn, guided
        out["out.greedy_image"] = picture if family == "llamagen" else picture.clamp(-1, 1) * 0.5 + 0.5
    out = {k: (v.float() if v.is_floating_point() else v.int()).contiguous() for k, v in out.items()}
    about = {"out.teacher_logits": "LlamaGen: logits of places 0..255, the class token first and the last token left out; "
                                   "VAR: of all scales, from in.teacher_input",
             "out.greedy_image": "LlamaGen: [-1, 1], not clamped; VAR: clamped, [0, 1]",
             "out.greedy_guided_logits": f"guided with cfg {cfg}, before the arg max",
             "smallest_gap": f"{min(gaps):.2e} between the best and the second best guided logit"}
    save_file(out, a.out + ".part", metadata={"system": family, "config": json.dumps(meta["config"]), "about": json.dumps(about)})
    os.replace(a.out + ".part", a.out)
    print(a.out, os.path.getsize(a.out), "bytes, smallest greedy gap", min(gaps))


if __name__ == "__main__":
    main()
