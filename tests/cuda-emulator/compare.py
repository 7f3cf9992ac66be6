"""Runs the emulator's instruction tests on a GPU and says where the two differ.

    mkdir /tmp/record
    CUDA_EMULATOR_RECORD=/tmp/record cargo test -p cuda-emulator --test instructions
    python tests/cuda-emulator/compare.py /tmp/record

The first run keeps each test's PTX, operands and results; this one repeats them with libcuda.so.1, through ctypes alone.
Instructions that PTX calls approximate may differ in their last bits, and so may products of numbers that are not whole;
all others must not. Exits with 1 if they do.

A fault on the GPU, an illegal instruction say, spoils all that its process does with CUDA afterwards, so the tests run in
a process that is replaced after each failure.
"""

import ctypes
import json
import multiprocessing
import pathlib
import sys

APPROXIMATE = (".approx", ".full")


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


def describe_tuple(about, data, differ, width):
    """The first tuple of operands that gave something else."""
    at = differ // width
    sizes = [size // about["count"] for size in about["operands"]]
    of, start = [], 0
    for size, whole in zip(sizes, about["operands"]):
        operand = data[start + at * size : start + (at + 1) * size]
        # The lowest byte comes first in memory, the highest in what people read.
        of.append(operand[::-1].hex())
        start += whole
    return ", ".join(of)


def main(folder):
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        sys.exit(f"no CUDA driver: {error}")
    descriptions = sorted(pathlib.Path(folder).glob("*.json"))
    if not descriptions:
        sys.exit(f"{folder}: no recorded tests there")
    worker = Worker()
    failed = refused = same = 0
    for description in descriptions:
        about, _, data, expected = read(description)
        tuples = "count" in about
        body = " ".join(about["body"].split())
        got = worker.run(description)
        if isinstance(got, RuntimeError):
            refused += 1
            print(f"not run: {body}: {got}")
            continue
        width = len(expected) // about["count"] if tuples else 4
        differ = [i for i in range(0, len(expected), width) if got[i : i + width] != expected[i : i + width]]
        if not differ:
            same += 1
            continue
        approximate = any(part in body for part in APPROXIMATE)
        failed += not approximate
        first = differ[0]
        where = describe_tuple(about, data, first, width) if tuples else f"byte {first}"
        print(
            f"{'approximate' if approximate else 'DIFFERENT'}: {body}: {len(differ)} of {len(expected) // width},"
            f" first for {where}: gpu {got[first : first + width][::-1].hex()},"
            f" emulator {expected[first : first + width][::-1].hex()}"
        )
    print(f"{same} alike, {failed} different, {refused} not run")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
