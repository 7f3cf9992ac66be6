"""Runs the emulator's instruction tests on a GPU and says where the two differ.

    mkdir /tmp/record
    CUDA_EMULATOR_RECORD=/tmp/record cargo test -p cuda-emulator --test instructions
    python tests/cuda-emulator/compare.py /tmp/record

The first run keeps each test's PTX, operands and results; this one repeats them with libcuda.so.1, through ctypes alone.
Instructions that PTX calls approximate may differ in their last bits; all others must not. Exits with 1 if they do.
"""

import ctypes
import json
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

    def run(self, text, operands, size, count):
        """What the kernel `test` of this PTX leaves in its results."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self("cuModuleLoadData", ctypes.byref(module), text)
        self("cuModuleGetFunction", ctypes.byref(function), module, b"test")
        addresses = []
        for data in [*operands, bytes(size)]:
            address = ctypes.c_uint64()
            self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(len(data)))
            self("cuMemcpyHtoD_v2", address, data, ctypes.c_size_t(len(data)))
            addresses.append(address)
        values = [*addresses, ctypes.c_uint32(count)]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self("cuLaunchKernel", function, (count + 255) // 256, 1, 1, 256, 1, 1, 0, None, pointers, None)
        out = ctypes.create_string_buffer(size)
        self("cuMemcpyDtoH_v2", out, addresses[-1], ctypes.c_size_t(size))
        for address in addresses:
            self("cuMemFree_v2", address)
        self("cuModuleUnload", module)
        return out.raw


def main(folder):
    driver = Driver()
    failed = refused = same = 0
    for description in sorted(pathlib.Path(folder).glob("*.json")):
        about = json.loads(description.read_text())
        data = description.with_suffix(".bin").read_bytes()
        operands, at = [], 0
        for size in about["operands"]:
            operands.append(data[at : at + size])
            at += size
        expected = data[at:]
        text = description.with_suffix(".ptx").read_bytes() + b"\0"
        body = " ".join(about["body"].split())
        try:
            got = driver.run(text, operands, len(expected), about["count"])
        except RuntimeError as error:
            refused += 1
            print(f"not run: {body}: {error}")
            continue
        width = len(expected) // about["count"]
        differ = [i for i in range(0, len(expected), width) if got[i : i + width] != expected[i : i + width]]
        if not differ:
            same += 1
            continue
        approximate = any(part in body for part in APPROXIMATE)
        failed += not approximate
        first = differ[0]
        at = first // width
        sizes = [size // about["count"] for size in about["operands"]]
        # The lowest byte comes first in memory, the highest in what people read.
        of = [operand[at * size : at * size + size][::-1].hex() for operand, size in zip(operands, sizes)]
        print(
            f"{'approximate' if approximate else 'DIFFERENT'}: {body}: {len(differ)} of {about['count']},"
            f" first for {', '.join(of)}: gpu {got[first : first + width][::-1].hex()},"
            f" emulator {expected[first : first + width][::-1].hex()}"
        )
    print(f"{same} alike, {failed} different, {refused} not run")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
