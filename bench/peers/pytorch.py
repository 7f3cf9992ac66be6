"""The peer: PyTorch in eager mode. Reads one JSON value a line: a task, or "run"; answers with one line each."""

import json
import math
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def operand(spec):
    with open(spec["path"], "rb") as file:
        data = bytearray(file.read())
    return torch.frombuffer(data, dtype=DTYPES[spec["dtype"]]).reshape(spec["shape"])


def linear(task):
    x, weight = operand(task["x"]), operand(task["weight"])
    # Several copies in turn, so that none is found in a cache.
    weights = [weight.clone() for _ in range(task["copies"])]
    turn = 0

    def run():
        nonlocal turn
        turn += 1
        F.linear(x, weights[turn % len(weights)])

    return run


def attention(task):
    q, k, v = (operand(task[name]) for name in "qkv")
    mask = None
    if isinstance(task["mask"], dict):
        group = torch.cat([torch.full((length,), n) for n, length in enumerate(task["mask"]["lengths"])])
        same = task["mask"]["same"]
        mask = group[:, None] == group[None, :] if same else group[:, None] >= group[None, :]
    causal = task["mask"] == "causal"
    return lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def nearest(task):
    x, codebook = operand(task["x"]), operand(task["codebook"])
    return lambda: torch.cdist(x, codebook).argmin(-1)


def filtered(logits, top_k, top_p):
    """The filter of LlamaGen's and many others' code: the k largest, then a sort."""
    if top_k > 0:
        logits = logits.masked_fill(logits < torch.topk(logits, top_k)[0][..., -1:], -math.inf)
    if top_p < 1:
        ordered, order = torch.sort(logits, descending=True)
        removed = torch.softmax(ordered, -1).cumsum(-1) > top_p
        removed[..., 1:] = removed[..., :-1].clone()
        removed[..., 0] = False
        logits = logits.masked_fill(removed.scatter(-1, order, removed), -math.inf)
    return torch.softmax(logits, -1)


def sample(task):
    logits = operand(task["logits"])
    return lambda: torch.multinomial(filtered(logits, task["top_k"], task["top_p"]), 1)


def jacobi(task):
    """A step of speculative Jacobi decoding: verify the drafts, draw rejected ones from what is left."""
    logits, old = operand(task["logits"]), operand(task["old"])
    p = filtered(old, task["top_k"], 1)
    draft = torch.multinomial(p, 1)

    def run():
        q = filtered(logits, task["top_k"], 1)
        kept = torch.rand(draft.shape) * p.gather(-1, draft) < q.gather(-1, draft)
        rest = (q - p).clamp_min(0)
        anew = torch.multinomial(rest / rest.sum(-1, keepdim=True).clamp_min(1e-12) + 1e-20, 1)
        return torch.where(kept, draft, anew)

    return run


def norm(task):
    x, channels = operand(task["x"]), task["x"]["shape"][-1]
    weight = torch.ones(channels, dtype=x.dtype)
    return {
        "rms_norm": lambda: F.rms_norm(x, (channels,), weight, 1e-5),
        "layer_norm": lambda: F.layer_norm(x, (channels,), weight, weight, 1e-5),
        "softmax": lambda: torch.softmax(x, -1),
    }[task["op"]]


def rope(task):
    x, angles = operand(task["x"]), operand(task["angles"])
    cos, sin = torch.cos(angles).to(x.dtype), torch.sin(angles).to(x.dtype)

    def run():
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    return run


def load(path):
    """The tensors of a safetensors file, on the default device."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    dtypes = {"F32": torch.float32, "BF16": torch.bfloat16}

    def tensor(spec):
        first, end = spec["data_offsets"]
        values = torch.frombuffer(data, dtype=torch.uint8, offset=start + first, count=end - first)
        return values.clone().view(dtypes[spec["dtype"]]).reshape(spec["shape"]).to(torch.get_default_device())

    return {name: tensor(spec) for name, spec in header.items() if name != "__metadata__"}


def rms_norm(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), 1e-5)


def llamagen(task):
    """LlamaGen in raster order with a cache that holds just the tokens so far."""
    weights = load(task["path"])
    layers, dim, heads, grid, cfg = 0, task["dim"], task["dim"] // 64, task["sides"][0], task["cfg"]
    while f"gpt.layers.{layers}.attention.wo.weight" in weights:
        layers += 1
    dtype = weights["gpt.output.weight"].dtype
    # Angles of rows and columns; those of the condition are 0.
    frequencies = 10000.0 ** -(torch.arange(0, 32, 2) / 32)
    angles = torch.arange(grid)[:, None] * frequencies
    angles = torch.cat([angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)], -1).reshape(-1, 32)
    zeros = torch.zeros(1, 32)
    cos, sin = (torch.cat([zeros, f(angles)]).to(dtype) for f in (torch.cos, torch.sin))

    def rope(x, place):
        even, odd = x[..., 0::2], x[..., 1::2]
        c, s = cos[place], sin[place]
        return torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2)

    def run():
        places = grid * grid
        caches = [torch.zeros(2, 2, heads, 1 + places, 64, dtype=dtype) for _ in range(layers)]
        x = weights["gpt.cls_embedding.embedding_table.weight"][[task["label"], -1]][:, None]
        for place in range(places):
            for n, cache in enumerate(caches):
                at = f"gpt.layers.{n}."
                h = rms_norm(x, weights[at + "attention_norm.weight"])
                qkv = F.linear(h, weights[at + "attention.wqkv.weight"]).view(2, 1, 3, heads, 64).permute(2, 0, 3, 1, 4)
                q, cache[0][:, :, place : place + 1] = rope(qkv[0], place), rope(qkv[1], place)
                cache[1][:, :, place : place + 1] = qkv[2]
                h = F.scaled_dot_product_attention(q, cache[0][:, :, : place + 1], cache[1][:, :, : place + 1])
                x = x + F.linear(h.transpose(1, 2).reshape(2, 1, dim), weights[at + "attention.wo.weight"])
                h = rms_norm(x, weights[at + "ffn_norm.weight"])
                gate = F.silu(F.linear(h, weights[at + "feed_forward.w1.weight"]))
                h = gate * F.linear(h, weights[at + "feed_forward.w3.weight"])
                x = x + F.linear(h, weights[at + "feed_forward.w2.weight"])
            logits = F.linear(rms_norm(x, weights["gpt.norm.weight"]), weights["gpt.output.weight"])[:, -1].float()
            logits = logits[1:] + cfg * (logits[:1] - logits[1:])
            token = torch.multinomial(torch.softmax(logits, -1), 1)
            x = weights["gpt.tok_embeddings.weight"][token].expand(2, 1, dim)

    return run


def var(task):
    """VAR's transformer over all scales, with a cache and guidance; its inputs are fixed numbers."""
    weights = load(task["path"])
    dim, heads = task["dim"], task["heads"]
    dtype = weights["head.weight"].dtype
    blocks = 0
    while f"blocks.{blocks}.attn.proj.weight" in weights:
        blocks += 1

    def layer(x, name):
        return F.linear(x, weights[name + ".weight"], weights[name + ".bias"])

    def norm(x):
        return F.layer_norm(x, (dim,), eps=1e-6)

    inputs = [torch.full((2, side * side, dim), 0.1, dtype=dtype) for side in task["sides"]]
    condition = torch.full((2, dim), 0.1, dtype=dtype)
    zeros = torch.zeros(dim, dtype=dtype)

    def run():
        caches = [None] * blocks
        active = F.silu(condition)
        for x in inputs:
            for n in range(blocks):
                at = f"blocks.{n}."
                gate1, gate2, scale1, scale2, shift1, shift2 = layer(active, at + "ada_lin.1")[:, None].chunk(6, -1)
                bias = torch.cat([weights[at + "attn.q_bias"], zeros, weights[at + "attn.v_bias"]])
                h = norm(x) * (1 + scale1) + shift1
                qkv = F.linear(h, weights[at + "attn.mat_qkv.weight"], bias)
                q, k, v = qkv.view(2, -1, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
                factor = weights[at + "attn.scale_mul_1H11"].clamp_max(math.log(100)).exp()
                q, k = F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1)
                if caches[n] is not None:
                    k, v = torch.cat([caches[n][0], k], 2), torch.cat([caches[n][1], v], 2)
                caches[n] = (k, v)
                h = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(x.shape)
                x = x + gate1 * layer(h, at + "attn.proj")
                h = norm(x) * (1 + scale2) + shift2
                h = layer(F.gelu(layer(h, at + "ffn.fc1"), approximate="tanh"), at + "ffn.fc2")
                x = x + gate2 * h
            scale, shift = layer(active, "head_nm.ada_lin.1")[:, None].chunk(2, -1)
            layer(norm(x) * (1 + scale) + shift, "head")

    return run


def main():
    torch.set_num_threads(int(sys.argv[1]))
    answer(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    tasks = [linear, attention, nearest, sample, jacobi, norm, rope, llamagen, var]
    tasks = {task.__name__: task for task in tasks}
    run = None
    with torch.inference_mode():
        for line in sys.stdin:
            question = json.loads(line)
            try:
                if question == "run":
                    answer(turn(run))
                else:
                    run = None
                    run = tasks[question["task"]](question)
                    if not question.get("cold"):
                        run()
                    answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
            except Exception as error:
                answer({"error": repr(error)})


def turn(run):
    """Seconds of one run: the median of the later half of those in 40 ms, as ours."""
    start, times = time.perf_counter(), []
    while not times or time.perf_counter() - start < 0.04:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return statistics.median(times[len(times) // 2 :])


def answer(value):
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
