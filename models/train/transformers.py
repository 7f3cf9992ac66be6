"""What the two transformers have in common: building, sampling, bits per token."""

import math

import torch
import torch.nn.functional as F

from llamagen import LlamaGen
from var import Var


def build(family, **config):
    return {"llamagen": LlamaGen, "var": Var}[family](**config)


def inputs(family, tokens, tokenizer):
    """What the transformer sees besides the class when the right answer is `tokens`."""
    return tokens if family == "llamagen" else tokenizer.teacher_input(tokens)


@torch.no_grad()
def bits(model, labels, tokens, seen):
    """Mean bits per token, and the mean of every picture, with the right tokens before each one."""
    out = []
    for i in range(0, len(labels), 32):
        logits = model(labels[i:i + 32], seen[i:i + 32]).float()
        out.append(F.cross_entropy(logits.transpose(1, 2), tokens[i:i + 32], reduction="none").mean(1) / math.log(2))
    out = torch.cat(out)
    return out.mean().item(), out


def sampler(temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Returns a function from logits [n, vocab] to tokens [n]; filters like the official code."""
    def pick(logits):
        logits = logits / temperature
        if top_k:
            logits = logits.masked_fill(logits < logits.topk(top_k)[0][..., -1:], -torch.inf)
        if top_p < 1:
            value, order = logits.sort(descending=True)
            above = value.softmax(-1).cumsum(-1) - value.softmax(-1) > top_p
            logits = logits.masked_fill(torch.zeros_like(above).scatter(-1, order, above), -torch.inf)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return pick


def generate(family, model, tokenizer, labels, cfg, **sampling):
    """Draws the tokens of one picture per label."""
    pick = sampler(**sampling)
    if family == "llamagen":
        return model.generate(labels, cfg, pick)
    return model.generate(labels, cfg, pick, tokenizer)
