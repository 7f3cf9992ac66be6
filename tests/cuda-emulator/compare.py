"""Runs the emulator's instruction tests on a GPU and says where the two differ.

    mkdir /tmp/record
    CUDA_EMULATOR_RECORD=/tmp/record cargo test -p cuda-emulator --test instructions
    python tests/cuda-emulator/compare.py /tmp/record

The first run keeps each test's PTX, operands and results; this one repeats them with libcuda.so.1, through ctypes alone.
Instructions that PTX calls approximate may differ in their last bits, and so may products of numbers that are not whole:
how far is said, to be held against the error that PTX states. All others must not. Exits with 1 if they do.

A fault on the GPU, an illegal instruction say, spoils all that its process does with CUDA afterwards, so the tests run in
a process that is replaced after each failure.
"""

import ctypes
import json
import multiprocessing
import pathlib
import struct
import sys

APPROXIMATE = (".approx", ".full")
# Differences of a test that are shown.
SHOWN = 6
# Bits of the exponent and of the mantissa.
FORMATS = {2: (5, 10), 4: (8, 23), 8: (11, 52)}
BF16 = (8, 7)


class Driver:
    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)

    def __call__(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise RuntimeError(f"{name}: status {status}")

    def load(self, text):
        """The module of this PTX and its kernel `test`."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoadData", ctypes.byref(module), text)
        self("cuModuleGetFunction", ctypes.byref(function), module, b"test")
        return module, function

    def upload(self, data):
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(len(data)))
        self("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
        return address

    def download(self, address, size):
        out = ctypes.create_string_buffer(size)
        self("cuMemcpyDtoH_v2", out, address, ctypes.c_size_t(size))
        return out.raw

    def launch(self, function, blocks, threads, shared, values):
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self("cuFuncSetAttribute", function, 8, shared)
        self("cuLaunchKernel", function, blocks, 1, 1, threads, 1, 1, shared, None, pointers, None)
        self("cuCtxSynchronize")

    def tensor_map(self, about, address):
        """A map of the tensor at this address, in a buffer of more than 128 bytes, and where it starts there."""
        room = ctypes.create_string_buffer(256)
        start = -ctypes.addressof(room) % 128
        rank = len(about["extents"])
        kind = {1: 0, 2: 1, 4: 2, 8: 4}[about["element"]]
        self(
            "cuTensorMapEncodeTiled",
            ctypes.c_void_p(ctypes.addressof(room) + start),
            kind,
            rank,
            ctypes.c_void_p(address.value),
            (ctypes.c_uint64 * rank)(*about["extents"]),
            (ctypes.c_uint64 * max(rank - 1, 1))(*about["strides"]),
            (ctypes.c_uint32 * rank)(*about["box"]),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            0,
            about["swizzle"],
            0,
            0,
        )
        return (ctypes.c_ubyte * 128).from_buffer(room, start)

    def run_tuples(self, text, about, data):
        """What a kernel over many operands leaves in its results."""
        module, function = self.load(text)
        addresses, at = [], 0
        for size in about["operands"]:
            addresses.append(self.upload(data[at : at + size]))
            at += size
        addresses.append(self.upload(bytes(about["results"])))
        count = about["count"]
        self.launch(function, (count + 255) // 256, 256, 0, [*addresses, ctypes.c_uint32(count)])
        out = self.download(addresses[-1], about["results"])
        for address in addresses:
            self("cuMemFree_v2", address)
        self("cuModuleUnload", module)
        return out

    def run_block(self, text, about, data):
        """What all memory that a kernel of one block was given holds afterwards."""
        module, function = self.load(text)
        memory, values, kept, at = [], [], [], 0
        for argument in about["arguments"]:
            size = argument["bytes"]
            part, at = data[at : at + size], at + size
            if argument["kind"] == "value":
                values.append(ctypes.create_string_buffer(part, size))
                continue
            address = self.upload(part)
            memory.append((address, size))
            if argument["kind"] == "memory":
                values.append(address)
                continue
            tensor_map = self.tensor_map(argument, address)
            if argument["kind"] == "map":
                values.append(tensor_map)
            else:
                kept.append(self.upload(bytes(tensor_map)))
                values.append(kept[-1])
        self.launch(function, 1, about["threads"], about["shared"], values)
        out = b"".join(self.download(address, size) for address, size in memory)
        for address in [*(address for address, _ in memory), *kept]:
            self("cuMemFree_v2", address)
        self("cuModuleUnload", module)
        return out


def read(description):
    """What a test is, its PTX, its operands, and what the emulator left."""
    about = json.loads(description.read_text())
    data = description.with_suffix(".bin").read_bytes()
    sizes = about["operands"] if "count" in about else [argument["bytes"] for argument in about["arguments"]]
    return about, description.with_suffix(".ptx").read_bytes() + b"\0", data, data[sum(sizes) :]


def work(connection):
    """Runs the tests whose descriptions come, until one fails."""
    try:
        driver = Driver()
        while True:
            about, text, data, _ = read(connection.recv())
            run = driver.run_tuples if "count" in about else driver.run_block
            connection.send(run(text, about, data))
    except RuntimeError as error:
        connection.send(error)
    except EOFError:
        pass


class Worker:
    """A process that runs tests, or none until the next."""

    def __init__(self):
        self.connection = None

    def run(self, description):
        """What the test leaves on the GPU, or the error."""
        if self.connection is None:
            self.connection, other = multiprocessing.Pipe()
            multiprocessing.get_context("spawn").Process(target=work, args=(other,), daemon=True).start()
            other.close()
        try:
            self.connection.send(description)
            got = self.connection.recv()
        except (EOFError, OSError):
            got = RuntimeError("the process that ran it ended")
        if isinstance(got, RuntimeError):
            self.connection.close()
            self.connection = None
        return got


def numbered(little):
    """A number as people read it: in memory its lowest byte comes first."""
    return little[::-1].hex()


def places(about, expected):
    """Where each result begins, and how many bytes it has."""
    if "count" in about:
        width = len(expected) // about["count"]
        return [(at, width) for at in range(0, len(expected), width)]
    out, at = [], 0
    for argument in about["arguments"]:
        if argument["kind"] != "value":
            end = at + argument["bytes"]
            out += [(start, min(4, end - start)) for start in range(at, end, 4)]
            at = end
    return out


def describe(about, data, at, width):
    """What gave the result there: the operands, or whose memory it is."""
    if "count" in about:
        of, start = [], 0
        for whole in about["operands"]:
            size = whole // about["count"]
            operand = start + at // width * size
            of.append(numbered(data[operand : operand + size]))
            start += whole
        return ", ".join(of)
    for index, argument in enumerate(about["arguments"]):
        if argument["kind"] != "value":
            if at < argument["bytes"]:
                return f"argument {index}, byte {at}"
            at -= argument["bytes"]


def spread(items):
    """Some of the items, with the first and the last."""
    if len(items) <= SHOWN:
        return items
    return [items[index * (len(items) - 1) // (SHOWN - 1)] for index in range(SHOWN)]


def number(little, layout):
    """A float's value, and its place among the numbers of its format, or None for NaN."""
    exponent, mantissa = layout
    bits = int.from_bytes(little, "little")
    sign = bits >> (exponent + mantissa)
    magnitude = bits & ((1 << (exponent + mantissa)) - 1)
    if magnitude > ((1 << exponent) - 1) << mantissa:
        return None
    code = {(5, 10): "<e", (8, 23): "<f", (11, 52): "<d"}.get(layout)
    value = struct.unpack(code, little)[0] if code else struct.unpack("<f", b"\0\0" + little)[0]
    return value, -magnitude if sign else magnitude


def distances(body, differ, got, expected):
    """How far apart two results are at most: in units in the last place, absolutely, and of the larger of them."""
    units, absolute, relative, unlike = (0, 0), 0.0, 0.0, 0
    for at, width in differ:
        layout = BF16 if "bf16" in body and width == 2 else FORMATS[width]
        one, other = (number(bytes_[at : at + width], layout) for bytes_ in (got, expected))
        if one is None or other is None or float("inf") in (abs(one[0]), abs(other[0])):
            unlike += 1
            continue
        units = max(units, (abs(one[1] - other[1]), at))
        distance = abs(one[0] - other[0])
        absolute = max(absolute, distance)
        relative = max(relative, distance / (max(abs(one[0]), abs(other[0])) or 1.0))
    text = f"at most {units[0]} ulps, {absolute:.3g} absolute, {relative:.3g} relative"
    return units[1], text + (f", {unlike} more with NaN or infinity on either side" if unlike else "")


def main(folder):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        sys.exit(f"no CUDA driver: {error}")
    descriptions = sorted(pathlib.Path(folder).glob("*.json"))
    if not descriptions:
        sys.exit(f"{folder}: no recorded tests there")
    worker = Worker()
    failed = close = refused = same = 0
    for description in descriptions:
        about, _, data, expected = read(description)
        name = f"{description.stem} {' '.join(about['body'].split())}"
        got = worker.run(description)
        if isinstance(got, RuntimeError):
            refused += 1
            print(f"not run: {name}: {got}")
            continue
        results = places(about, expected)
        differ = [(at, width) for at, width in results if got[at : at + width] != expected[at : at + width]]
        if not differ:
            same += 1
            continue
        show = spread(differ)
        how_many = f"{len(differ)} of {len(results)}"
        if any(part in about["body"] for part in APPROXIMATE):
            close += 1
            worst, text = distances(about["body"], differ, got, expected)
            print(f"approximate: {name}: {how_many}, {text}")
            show = [place for place in differ if place[0] == worst] or differ[:1]
        else:
            failed += 1
            print(f"DIFFERENT: {name}: {how_many}")
        for at, width in show:
            pair = f"gpu {numbered(got[at : at + width])}, emulator {numbered(expected[at : at + width])}"
            print(f"    {describe(about, data, at, width)}: {pair}")
    print(f"{same} alike, {failed} different, {close} approximate, {refused} not run")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
