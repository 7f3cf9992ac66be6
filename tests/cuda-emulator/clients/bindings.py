"""NVIDIA's bindings of the driver: a kernel, a wrong launch, a stream with events, and a captured graph."""

import ctypes

from cuda.bindings import driver

PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry triple(.param .u64 values, .param .u32 count)
{
    .reg .u64 %address;
    .reg .u32 %block, %threads, %thread, %count, %value;
    .reg .pred %outside;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %thread, %block, %threads, %thread;
    ld.param.u32 %count, [count];
    setp.ge.u32 %outside, %thread, %count;
    @%outside ret;
    ld.param.u64 %address, [values];
    mad.wide.u32 %address, %thread, 4, %address;
    ld.global.u32 %value, [%address];
    mul.lo.u32 %value, %value, 3;
    st.global.u32 [%address], %value;
    ret;
}
"""
COUNT = 1000


def ok(returned):
    status, *values = returned
    assert status == driver.CUresult.CUDA_SUCCESS, status
    return values[0] if len(values) == 1 else values


def main():
    ok(driver.cuInit(0))
    device = ok(driver.cuDeviceGet(0))
    context = ok(driver.cuDevicePrimaryCtxRetain(device))
    ok(driver.cuCtxSetCurrent(context))
    kernel = ok(driver.cuModuleGetFunction(ok(driver.cuModuleLoadData(PTX)), b"triple"))
    assert ok(driver.cuFuncGetAttribute(driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PTX_VERSION, kernel)) == 70

    host = (ctypes.c_uint32 * COUNT)(*range(COUNT))
    values = ok(driver.cuMemAlloc(4 * COUNT))
    ok(driver.cuMemcpyHtoD(values, ctypes.addressof(host), 4 * COUNT))

    def launch(stream, count=COUNT, threads=128):
        arguments = ((int(values), count), (ctypes.c_uint64, ctypes.c_uint32))
        return driver.cuLaunchKernel(kernel, -(-COUNT // 128), 1, 1, threads, 1, 1, 0, stream, arguments, 0)

    stream = ok(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
    start, end = (ok(driver.cuEventCreate(0)) for _ in range(2))
    ok(driver.cuEventRecord(start, stream))
    ok(launch(stream))
    ok(driver.cuEventRecord(end, stream))
    ok(driver.cuEventSynchronize(end))
    assert ok(driver.cuEventElapsedTime(start, end)) >= 0

    ok(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    ok(launch(stream))
    ok(launch(stream))
    graph = ok(driver.cuStreamEndCapture(stream))
    assert ok(driver.cuGraphGetNodes(graph))[1] == 2
    executable = ok(driver.cuGraphInstantiate(graph, 0))
    ok(driver.cuGraphLaunch(executable, stream))
    ok(driver.cuStreamSynchronize(stream))
    ok(driver.cuMemcpyDtoH(ctypes.addressof(host), values, 4 * COUNT))
    assert list(host) == [27 * value for value in range(COUNT)]

    # Threads beyond the array, if the kernel is told that there are more values.
    assert launch(stream, count=COUNT + 1)[0] == driver.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    assert launch(stream, threads=2048)[0] == driver.CUresult.CUDA_ERROR_INVALID_VALUE

    ok(driver.cuMemFree(values))
    ok(driver.cuGraphExecDestroy(executable))
    ok(driver.cuGraphDestroy(graph))
    ok(driver.cuDevicePrimaryCtxRelease(device))
    print("cuda-bindings: as expected")


main()
