"""Noto emoji as a small class-labelled picture set.

The pictures are the 64x64 PNGs of the npm package `emoji-datasource-google`.
`load()` reads them once, composites them on white and caches the result as one
`.npz` file; everything else works on that array.

* `label` is the index into `CLASSES`, or -1 for a picture that only the
  tokenizers see.
* `held` marks pictures that no training step may touch. The split goes by a
  hash of the emoji's name with the words for gender removed, so that variants
  of one drawing always fall on the same side.
* `weight` is the relative frequency in training; the skin-tone variants of a
  picture count one tenth each.
* `flip` says whether the mirror image is a plausible picture too (it is not
  for flags, clocks and anything with letters).
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

CLASSES = ["smiley", "animal", "heart", "hand", "person", "clock", "flag", "moon", "fruit", "flower"]

# Whole subcategories of emoji.json that make up a class ...
_SUBCATEGORY = {
    "face-smiling": "smiley", "face-tongue": "smiley", "face-sleepy": "smiley", "face-affection": "smiley",
    "face-glasses": "smiley", "face-neutral-skeptical": "smiley", "face-concerned": "smiley",
    "face-unwell": "smiley", "face-hand": "smiley", "face-hat": "smiley",
    "cat-face": "animal",
    "heart": "heart",
    "hand-single-finger": "hand", "hand-fingers-closed": "hand", "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand", "hands": "hand",
    "person": "person", "person-role": "person", "person-gesture": "person",
    "country-flag": "flag", "subdivision-flag": "flag",
    "food-fruit": "fruit", "plant-flower": "flower",
}
# ... and the classes that are picked emoji by emoji.
_PICKED = {
    "animal": "mouse cow tiger rabbit cat horse monkey_face dog pig hamster wolf polar_bear bear panda_face lion_face "
              "unicorn_face fox_face raccoon koala frog dragon_face zebra_face moose deer",
    "moon": "new_moon waxing_crescent_moon first_quarter_moon moon full_moon waning_gibbous_moon last_quarter_moon "
            "waning_crescent_moon crescent_moon new_moon_with_face first_quarter_moon_with_face "
            "last_quarter_moon_with_face full_moon_with_face",
}
_DROPPED = {"love_letter", "upside_down_face", "dotted_line_face", "heart_decoration", "pregnant_woman", "bow", "man-bowing",
            "woman-bowing", "watermelon", "wilted_flower", "rosette", "gift_heart"}
# Never shown, not even to the tokenizers: silhouettes, signs and letters.
_SKIPPED_CATEGORIES = {"Symbols", "Component"}
_SKIPPED_SUBCATEGORIES = {"family", "person-symbol", "emotion"}
_NO_FLIP = {"flag", "clock"}


@dataclass
class Pictures:
    pixels: np.ndarray   # [n, 64, 64, 3] uint8
    label: np.ndarray    # [n] int64, -1 = tokenizer only
    held: np.ndarray     # [n] bool
    weight: np.ndarray   # [n] float32
    flip: np.ndarray     # [n] bool
    name: np.ndarray     # [n] str

    def __len__(self):
        return len(self.label)


def _class_of(entry):
    short = entry["short_name"]
    if short in _DROPPED:
        return None
    for name, members in _PICKED.items():
        if short in members.split():
            return name
    if re.fullmatch(r"clock\d+", short):
        return "clock"
    return _SUBCATEGORY.get(entry["subcategory"])


def _is_held(short, percent):
    words = [w for w in re.split(r"[-_ ]", short) if w not in {"man", "woman", "men", "women", "male", "female", "person"}]
    return int(hashlib.md5("-".join(words).encode()).hexdigest(), 16) % 100 < percent


def load(package, cache=None, held_percent=5):
    """Reads the unpacked npm package (the folder with `emoji.json`)."""
    if cache and os.path.exists(cache):
        return Pictures(**np.load(cache))
    rows = []
    for entry in json.load(open(os.path.join(package, "emoji.json"))):
        if entry["category"] in _SKIPPED_CATEGORIES or entry["subcategory"] in _SKIPPED_SUBCATEGORIES:
            continue
        label = _class_of(entry)
        files = [(entry["image"], 1.0)]
        # Only single-tone variants; couples in two tones are a different drawing.
        files += [(v["image"], 0.1) for k, v in entry.get("skin_variations", {}).items() if "-" not in k]
        for file, weight in files:
            path = os.path.join(package, "img/google/64", file)
            if not os.path.exists(path):
                continue
            picture = Image.open(path).convert("RGBA").resize((64, 64), Image.LANCZOS)
            white = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
            rows.append((
                np.asarray(Image.alpha_composite(white, picture).convert("RGB")),
                CLASSES.index(label) if label else -1,
                _is_held(entry["short_name"], held_percent), weight,
                label not in _NO_FLIP and entry["category"] != "Flags", file[:-4] + " " + entry["short_name"],
            ))
    pixels, label, held, weight, flip, name = (np.array(column) for column in zip(*rows))
    pictures = Pictures(pixels, label.astype(np.int64), held, weight.astype(np.float32), flip, name)
    if cache:
        np.savez_compressed(cache, **pictures.__dict__)
    return pictures


def to_tensor(pixels):
    """uint8 [n, 64, 64, 3] to float [n, 3, 64, 64] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_pixels(x):
    return x.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def shift(pixels, dx, dy):
    """Moves a picture by whole pixels; white comes in from outside."""
    out = np.full_like(pixels, 255)
    h, w = pixels.shape[:2]
    out[max(dy, 0):h + min(dy, 0), max(dx, 0):w + min(dx, 0)] = \
        pixels[max(-dy, 0):h + min(-dy, 0), max(-dx, 0):w + min(-dx, 0)]
    return out


def augment(pictures, index, rng, max_shift, permute_colours=0.0):
    """One augmented uint8 picture: mirrored, shifted, R, G and B permuted."""
    p = pictures.pixels[index]
    if pictures.flip[index] and rng.random() < 0.5:
        p = p[:, ::-1]
    if max_shift:
        p = shift(p, *rng.integers(-max_shift, max_shift + 1, 2))
    if rng.random() < permute_colours:
        p = p[..., rng.permutation(3)]
    return p


def grid(pixels, columns, pad=2, scale=1):
    """A contact sheet of uint8 pictures as a PIL image."""
    n, h, w, _ = pixels.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), 232, np.uint8)
    for i, p in enumerate(pixels):
        y, x = (i // columns) * (h + pad) + pad, (i % columns) * (w + pad) + pad
        sheet[y:y + h, x:x + w] = p
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.NEAREST) if scale > 1 else image
