"""The peer on an NVIDIA GPU: PyTorch, and what else of its world is installed. Reads one JSON value a line: a task, or
"run"; answers with one line each. A task is done in several ways, and each is run in passes of many calls as ours are:
by CUDA graphs if that is faster, with inputs that take turns and outputs that are kept until the pass ends.

    pytorch_cuda.py DEVICE MEASURING NUMBERS PERIOD
"""

import importlib
import json
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import pytorch
from pytorch import DTYPES, answer, filtered

DEVICE = torch.device(sys.argv[1])
MEASURING = sys.argv[2] == "true"
with open(sys.argv[3], "rb") as file:
    NUMBERS = torch.frombuffer(bytearray(file.read()), dtype=torch.float32).to(DEVICE)
PERIOD = int(sys.argv[4])
PASS_SECONDS = 2e-3
MOST_CALLS = 256
# Of a call that is not recorded as a graph.
LONG_SECONDS = 5e-2


def optional(name):
    """A module that may be missing, then with why."""
    try:
        return importlib.import_module(name), None
    except Exception as error:
        return None, f"{name} is absent: {error}"


OPTIONAL = {name: optional(name) for name in ("flash_attn_interface", "flash_attn", "flashinfer")}


def module(name):
    return OPTIONAL[name][0]


def operands(task):
    """Each operand's copies, as one tensor whose first axis counts them."""
    tensors = {}
    for name, spec in task["operands"].items():
        shape = [task["copies"], *spec["shape"]]
        count = math.prod(shape)
        once = NUMBERS[spec["start"] : spec["start"] + min(count, PERIOD)].to(DTYPES[spec["dtype"]])
        tensors[name] = once.repeat(-(-count // once.numel()))[:count].view(shape)
    return tensors


class Ways(dict):
    """Ways to do a task, by name; those that fail are left out with the reason."""

    def __init__(self):
        self.absent = []

    def add(self, name, make):
        """`make` gives a function of the call's number."""
        try:
            run = make()
            run(0)
            self[name] = Pass(run)
        except Exception as error:
            reason = str(error).strip().split("\n")[0][:200]
            self.absent.append(f"{name}: {type(error).__name__}: {reason}")


class Pass:
    """Many calls at a time; `copies` of the inputs are used in turn."""

    copies = 1

    def __init__(self, run):
        self.run, self.graph, self.calls = run, None, 1
        if not MEASURING:
            return
        seconds = self.seconds()
        self.calls = int(max(self.copies, min(PASS_SECONDS / seconds, MOST_CALLS)))
        if DEVICE.type != "cuda" or seconds > LONG_SECONDS:
            return
        self.seconds()
        without = min(self.seconds(), self.seconds())
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.many()
            self.graph = graph
            self.seconds()
            if min(self.seconds(), self.seconds()) > without:
                self.graph = None
        except Exception:
            # Some synchronise inside.
            self.graph = None
            torch.cuda.synchronize()

    def many(self):
        return [self.run(call % self.copies) for call in range(self.calls)]

    def seconds(self):
        """Of one call."""
        work = self.graph.replay if self.graph else self.many
        if DEVICE.type != "cuda":
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) / self.calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / self.calls


def sdpa(backend, q, k, v, **options):
    def run(call):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q[call], k[call], v[call], **options)

    return lambda: run


BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "PyTorch flash": SDPBackend.FLASH_ATTENTION,
    "PyTorch efficient": SDPBackend.EFFICIENT_ATTENTION,
}
if DEVICE.type == "cpu":
    BACKENDS = {"PyTorch math": SDPBackend.MATH}


def attention(task, ways, q, k, v):
    if isinstance(task["mask"], dict):
        return masked_attention(task["mask"], ways, q, k, v)
    causal = task["mask"] == "causal"
    # Others put the tokens before the heads.
    def tokens_first(function):
        rows = [x.transpose(2, 3).contiguous() for x in (q, k, v)]
        return lambda call: function(*(x[call] for x in rows)).transpose(1, 2)

    for name in ("flash_attn_interface", "flash_attn"):
        if flash := module(name):
            title = {"flash_attn_interface": "FlashAttention-3", "flash_attn": "FlashAttention-2"}[name]

            def run(q, k, v, flash=flash):
                out = flash.flash_attn_func(q, k, v, causal=causal)
                return out[0] if isinstance(out, tuple) else out

            ways.add(title, lambda run=run: tokens_first(run))
    if (flashinfer := module("flashinfer")) and q.shape[1] == 1:

        def one_sequence(q, k, v):
            if q.shape[1] == 1:
                return flashinfer.single_decode_with_kv_cache(q[0, 0], k[0], v[0])[None, None]
            return flashinfer.single_prefill_with_kv_cache(q[0], k[0], v[0], causal=causal)[None]

        ways.add("FlashInfer", lambda: tokens_first(one_sequence))
    for name, backend in BACKENDS.items():
        ways.add(name, sdpa(backend, q, k, v, is_causal=causal))


def masked_attention(mask, ways, q, k, v):
    """Groups of neighbours: a query sees a key whose group is not later, or is the same."""
    lengths = mask["lengths"]
    group = torch.cat([torch.full((length,), n) for n, length in enumerate(lengths)]).to(DEVICE)
    same = mask["same"]

    def sees(batch, head, i, j):
        return group[i] == group[j] if same else group[i] >= group[j]

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        length = sum(lengths)
        blocks = create_block_mask(sees, None, None, length, length, device=DEVICE)
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda call: compiled(q[call], k[call], v[call], block_mask=blocks)

    if MEASURING:
        ways.add("FlexAttention", flex)
    dense = group[:, None] == group[None, :] if same else group[:, None] >= group[None, :]
    for name, backend in BACKENDS.items():
        if "flash" not in name:
            ways.add(f"{name} with the mask", sdpa(backend, q, k, v, attn_mask=dense))


def linear(task, ways, x, weight):
    ways.add("cuBLAS", lambda: lambda call: F.linear(x[call], weight[call]))


def nearest(task, ways, x, codebook):
    lengths = codebook.square().sum(-1)

    def product(call):
        return torch.addmm(lengths[call], x[call], codebook[call].T, alpha=-2).argmin(-1)

    ways.add("product + argmin", lambda: product)
    ways.add("cdist + argmin", lambda: lambda call: torch.cdist(x[call], codebook[call]).argmin(-1))


def sample(task, ways, logits):
    def run(call):
        kept = filtered(logits[call] / task["temperature"], task["top_k"], task["top_p"])
        return torch.multinomial(kept, 1)

    ways.add("PyTorch", lambda: run)
    if (flashinfer := module("flashinfer")) and task["top_k"] and task["top_p"] < 1:

        def fused(call):
            logits_of_call = logits[call] / task["temperature"]
            return flashinfer.sampling.top_k_top_p_sampling_from_logits(logits_of_call, task["top_k"], task["top_p"])

        ways.add("FlashInfer", lambda: fused)


def jacobi(task, ways, logits, old):
    """A step of speculative Jacobi decoding: verify the drafts, draw rejected ones from what is left."""

    def distribution(x):
        return filtered(x.view(-1, x.shape[-1]) / task["temperature"], task["top_k"], 1)

    p = [distribution(x) for x in old]
    drafts = [torch.multinomial(x, 1) for x in p]

    def run(call):
        q, draft = distribution(logits[call]), drafts[call]
        kept = torch.rand(draft.shape, device=DEVICE) * p[call].gather(-1, draft) < q.gather(-1, draft)
        rest = (q - p[call]).clamp_min(0)
        anew = torch.multinomial(rest / rest.sum(-1, keepdim=True).clamp_min(1e-12) + 1e-20, 1)
        return torch.where(kept, draft, anew)

    ways.add("PyTorch", lambda: run)


def norm(task, ways, x):
    channels = x.shape[-1:]
    weight = torch.ones(channels, dtype=x.dtype, device=DEVICE)
    run = {
        "rms_norm": lambda call: F.rms_norm(x[call], channels, weight, 1e-5),
        "layer_norm": lambda call: F.layer_norm(x[call], channels, weight, weight, 1e-5),
        "softmax": lambda call: torch.softmax(x[call], -1),
    }[task["op"]]
    ways.add("PyTorch", lambda: run)


def rope(task, ways, x):
    """The angles of a grid: half the pairs by row, half by column."""
    side, pairs = task["side"], x.shape[-1] // 2
    frequencies = 10000.0 ** -(torch.arange(0, pairs, 2, device=DEVICE) / pairs)
    angles = torch.arange(side, device=DEVICE)[:, None] * frequencies
    angles = torch.cat([angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)], -1)
    angles = angles.reshape(-1, pairs)
    cos, sin = torch.cos(angles).to(x.dtype), torch.sin(angles).to(x.dtype)

    def run(call):
        even, odd = x[call][..., 0::2], x[call][..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    ways.add("PyTorch", lambda: run)


def llamagen(task, ways):
    run = pytorch.llamagen(task)
    ways.add("PyTorch", lambda: lambda call: run())


def var(task, ways):
    run = pytorch.var(task)
    ways.add("PyTorch", lambda: lambda call: run())


TASKS = (attention, linear, nearest, sample, jacobi, norm, rope, llamagen, var)
TASKS = {task.__name__: task for task in TASKS}


def prepare(task):
    Pass.copies = task["copies"]
    ways = Ways()
    try:
        TASKS[task["task"]](task, ways, **operands(task))
    except Exception as error:
        ways.absent.append(f"PyTorch: {error!r}")
    some = None
    # Draws differ by their random numbers.
    if ways and not task.get("random"):
        flat = next(iter(ways.values())).run(0).flatten()
        step = task["step"]
        some = flat[: flat.numel() // step * step : step].double().tolist()
    return ways, {"absent": ways.absent, "some": some}


def ceilings():
    """Of a large copy and of large products, the best of several."""
    side = 8192
    Pass.copies = 1

    def product(dtype, side):
        x = torch.randn(side, side, device=DEVICE, dtype=dtype)
        return 2 * side**3 / best(lambda call: torch.mm(x, x))

    def best(run):
        way = Pass(run)
        return min(way.seconds() for _ in range(6))

    source = torch.zeros(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / best(lambda call: target.copy_(source))
    return {"bf16": product(torch.bfloat16, side), "f32": product(torch.float32, side // 2), "copy": copy}


def main():
    torch.set_default_device(DEVICE)
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if DEVICE.type == "cuda" else ""
    answer(f"PyTorch {torch.__version__}{cudnn}")
    ways = {}
    with torch.inference_mode():
        for line in sys.stdin:
            question = json.loads(line)
            try:
                if question == "run":
                    answer({name: way.seconds() for name, way in ways.items()})
                elif "absent" in question:
                    answer([reason for _, reason in OPTIONAL.values() if reason])
                elif "ceilings" in question:
                    answer(ceilings())
                else:
                    ways = {}
                    if DEVICE.type == "cuda":
                        torch.cuda.empty_cache()
                    ways, told = prepare(question)
                    answer(told)
            except Exception as error:
                answer({"error": repr(error)})


main()
