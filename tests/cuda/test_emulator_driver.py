"""The emulated driver: order of streams, captured graphs, limits, injected errors, and what it calls misuse."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.host import args_struct
from tests.cuda.host.build import kernel_library
from tests.cuda.host.device import EmulatedDriver

PLANTED = Path(__file__).parent / "kernels" / "planted.cu"
Args = args_struct("Args", ("from_", ctypes.c_void_p), ("to", ctypes.c_void_p), ("n", ctypes.c_int32))
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, INVALID_HANDLE, NOT_READY = 0, 1, 2, 201, 400, 600
ILLEGAL_ADDRESS, CAPTURE_UNSUPPORTED, UPDATE_FAILURE = 700, 900, 910
INVALID_DEVICE, PEER_ALREADY_ENABLED = 101, 704


class Gpu:
    """A context with a stream, and the driver's functions with Python's numbers."""

    def __init__(self, ordinal: int = 0, **setup: object) -> None:
        self.driver = EmulatedDriver(**setup) if setup.get("driver") is None else setup["driver"]
        self.context = self.made("cuCtxCreate", ctypes.c_uint(8), ctypes.c_int(ordinal))
        self.stream = self.made("cuStreamCreate", ctypes.c_uint(1))

    def __call__(self, name: str, *args: object) -> int:
        return self.driver.call(name, *args)

    def made(self, name: str, *args: object) -> ctypes.c_void_p:
        """Call what fills a handle or an address."""
        out = ctypes.c_void_p()
        assert self(name, ctypes.pointer(out), *args) == SUCCESS, (name, self.driver.misuse())
        return out

    def memory(self, n: int) -> ctypes.c_uint64:
        """Return device memory for n numbers."""
        return ctypes.c_uint64(self.made("cuMemAlloc", ctypes.c_size_t(4 * n)).value)

    def pinned(self, n: int) -> tuple[ctypes.c_void_p, np.ndarray]:
        """Return pinned memory of n numbers, by address and as an array."""
        p = self.made("cuMemHostAlloc", ctypes.c_size_t(4 * n), ctypes.c_uint(2))
        return p, np.ctypeslib.as_array(ctypes.cast(p, ctypes.POINTER(ctypes.c_float)), (n,))

    def up(self, to: ctypes.c_uint64, p: ctypes.c_void_p, n: int) -> int:
        return self("cuMemcpyHtoDAsync", to, p, ctypes.c_size_t(4 * n), self.stream)

    def down(self, p: ctypes.c_void_p, source: ctypes.c_uint64, n: int) -> int:
        return self("cuMemcpyDtoHAsync", p, source, ctypes.c_size_t(4 * n), self.stream)

    def function(self, name: str) -> ctypes.c_void_p:
        """Return a kernel of planted.cu."""
        path = kernel_library(PLANTED, [name])
        module = self.made("cuModuleLoadData", ctypes.c_char_p(f"GGREMU1\0{path}\0planted".encode()))
        return self.made("cuModuleGetFunction", module, ctypes.c_char_p(name.encode()))

    def launch(
        self, function: ctypes.c_void_p, x: object, y: object, n: int, *, shared: int = 0, threads: int = 128
    ) -> int:
        args = Args(getattr(x, "value", None), getattr(y, "value", None), n)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        numbers = [ctypes.c_uint(v) for v in (-(-n // 128), 1, 1, threads, 1, 1, shared)]
        return self("cuLaunchKernel", function, *numbers, self.stream, ctypes.pointer(pointers), ctypes.c_void_p())

    def wait(self) -> int:
        return self("cuStreamSynchronize", self.stream)


@pytest.fixture(params=[False, True], ids=["eager", "lazy"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    """Return a GPU of a driver that works at once, or when it is waited for."""
    return Gpu(lazy=request.param)


def test_a_kernel_between_copies(gpu: Gpu) -> None:
    n = 256
    x, y = gpu.memory(n), gpu.memory(n)
    p, host = gpu.pinned(n)
    host[:] = np.arange(n)
    assert gpu.up(x, p, n) == SUCCESS
    assert gpu.launch(gpu.function("reverse<NONE>"), x, y, n) == SUCCESS
    assert gpu.down(p, y, n) == SUCCESS
    assert gpu.wait() == SUCCESS
    assert np.array_equal(host, np.arange(n).reshape(2, 128)[:, ::-1].ravel())
    assert gpu.driver.misuse() == ""
    assert gpu.driver.ran() == {("planted", "reverse<NONE>")}


def test_lazy_work_is_not_done_before_somebody_waits() -> None:
    gpu = Gpu(lazy=True, queries=2)
    x = gpu.memory(4)
    p, host = gpu.pinned(4)
    host[:] = 1
    gpu("cuMemsetD8Async", x, ctypes.c_ubyte(0), ctypes.c_size_t(16), gpu.stream)
    gpu.down(p, x, 4)
    event = gpu.made("cuEventCreate", ctypes.c_uint(0))
    gpu("cuEventRecord", event, gpu.stream)
    assert [gpu("cuEventQuery", event) for _ in range(2)] == [NOT_READY] * 2
    assert host.tolist() == [1] * 4
    assert gpu("cuEventQuery", event) == SUCCESS
    assert host.tolist() == [0] * 4


def test_a_stream_waits_for_an_event_of_another() -> None:
    gpu = Gpu(lazy=True)
    x = gpu.memory(4)
    p, host = gpu.pinned(4)
    other = gpu.made("cuStreamCreate", ctypes.c_uint(1))
    event = gpu.made("cuEventCreate", ctypes.c_uint(0))
    gpu("cuMemsetD8Async", x, ctypes.c_ubyte(0), ctypes.c_size_t(16), other)
    gpu("cuEventRecord", event, other)
    gpu("cuMemsetD8Async", x, ctypes.c_ubyte(255), ctypes.c_size_t(16), other)
    gpu("cuStreamWaitEvent", gpu.stream, event, ctypes.c_uint(0))
    gpu.down(p, x, 4)
    assert gpu.wait() == SUCCESS
    assert host.tolist() == [0] * 4


def captured(
    gpu: Gpu, function: ctypes.c_void_p, x: object, y: object, *, n: int = 128, times: int = 1
) -> ctypes.c_void_p:
    """Return a graph of some launches."""
    assert gpu("cuStreamBeginCapture", gpu.stream, ctypes.c_int(0)) == SUCCESS
    for _ in range(times):
        assert gpu.launch(function, x, y, n) == SUCCESS
    graph = ctypes.c_void_p()
    assert gpu("cuStreamEndCapture", gpu.stream, ctypes.pointer(graph)) == SUCCESS
    return graph


def test_a_captured_graph_runs_when_it_is_launched_and_can_be_updated(gpu: Gpu) -> None:
    n = 128
    x, y, z = (gpu.memory(n) for _ in range(3))
    p, host = gpu.pinned(n)
    host[:] = np.arange(n)
    gpu.up(x, p, n)
    gpu.wait()
    function = gpu.function("reverse<NONE>")
    graph = captured(gpu, function, x, y)
    assert gpu.driver.counts().launches == 0
    made = gpu.made("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
    assert gpu("cuGraphLaunch", made, gpu.stream) == SUCCESS
    result = ctypes.create_string_buffer(24)
    assert gpu("cuGraphExecUpdate", made, captured(gpu, function, y, z), ctypes.pointer(result)) == SUCCESS
    assert gpu("cuGraphLaunch", made, gpu.stream) == SUCCESS
    gpu.down(p, z, n)
    gpu.wait()
    assert np.array_equal(host, np.arange(n))  # reversed twice
    longer = captured(gpu, function, y, z, times=2)
    assert gpu("cuGraphExecUpdate", made, longer, ctypes.pointer(result)) == UPDATE_FAILURE
    assert gpu("cuGraphExecDestroy", made) == SUCCESS
    assert gpu("cuGraphLaunch", made, gpu.stream) == INVALID_HANDLE


def test_synchronising_spoils_a_capture(gpu: Gpu) -> None:
    gpu("cuStreamBeginCapture", gpu.stream, ctypes.c_int(0))
    assert gpu.wait() == CAPTURE_UNSUPPORTED
    out = ctypes.c_void_p()
    assert gpu("cuStreamEndCapture", gpu.stream, ctypes.pointer(out)) != SUCCESS
    assert "is being captured" in gpu.driver.misuse()


def test_memory_ends(gpu: Gpu) -> None:
    small = Gpu(memory_bytes=1 << 20)
    address = ctypes.c_uint64()
    assert small("cuMemAlloc", ctypes.pointer(address), ctypes.c_size_t(2 << 20)) == OUT_OF_MEMORY
    assert small("cuMemAlloc", ctypes.pointer(address), ctypes.c_size_t(1 << 19)) == SUCCESS
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    small("cuMemGetInfo", ctypes.pointer(free), ctypes.pointer(total))
    assert (free.value, total.value) == (1 << 19, 1 << 20)
    assert small("cuMemFree", address) == SUCCESS
    assert small.driver.counts().bytes[0] == 0


def test_an_illegal_access_is_sticky(gpu: Gpu) -> None:
    x, y = gpu.memory(100), gpu.memory(128)
    gpu.launch(gpu.function("reverse<NONE>"), x, y, 128)
    assert gpu.wait() == ILLEGAL_ADDRESS
    assert gpu("cuMemFree", x) == ILLEGAL_ADDRESS
    assert "reads 4 bytes at 400 of an allocation of 400 bytes" in gpu.driver.misuse()
    assert gpu("cuCtxDestroy", gpu.context) == SUCCESS
    assert gpu.driver.counts().allocations == 0
    fresh = Gpu(driver=gpu.driver)
    assert fresh.wait() == SUCCESS


def test_errors_come_when_they_are_told_to(gpu: Gpu) -> None:
    gpu.driver.inject("cuMemcpyHtoDAsync", 719, after=1, times=2)
    x = gpu.memory(4)
    p, _ = gpu.pinned(4)
    assert [gpu.up(x, p, 4) for _ in range(4)] == [SUCCESS, 719, 719, SUCCESS]
    gpu.driver.inject("cuMemcpyHtoDAsync", 719, sticky=True)
    assert gpu.up(x, p, 4) == 719
    assert gpu.wait() == 719


def test_two_devices_do_not_share_memory() -> None:
    one = Gpu(devices=2)
    x = one.memory(128)
    two = Gpu(1, driver=one.driver)
    y = two.memory(128)
    assert two("cuMemsetD8Async", x, ctypes.c_ubyte(0), ctypes.c_size_t(16), two.stream) == INVALID_VALUE
    assert "not device memory of this context" in two.driver.misuse()
    size = ctypes.c_size_t(512)
    assert two("cuMemcpyPeerAsync", y, two.context, x, one.context, size, two.stream) == SUCCESS
    two.launch(two.function("reverse<NONE>"), x, y, 128)
    assert two.wait() == ILLEGAL_ADDRESS
    assert "of another context's memory" in two.driver.misuse()
    assert one("cuCtxSetCurrent", one.context) == SUCCESS
    assert one.wait() == SUCCESS


def test_misuse_is_noted(gpu: Gpu) -> None:
    x = gpu.memory(4)
    pageable = np.zeros(4, np.float32)
    gpu.up(x, ctypes.c_void_p(pageable.ctypes.data), 4)
    assert "host memory is not pinned" in gpu.driver.misuse()
    p, _ = gpu.pinned(4)
    assert gpu.up(ctypes.c_uint64(x.value + 4), p, 4) == INVALID_VALUE
    assert "16 bytes that are not device memory" in gpu.driver.misuse()
    assert gpu("cuMemFree", x) == SUCCESS
    assert gpu.up(x, p, 4) == INVALID_VALUE
    assert gpu("cuMemFree", x) == INVALID_VALUE
    gpu.driver.misuse()
    assert gpu("cuStreamDestroy", gpu.stream) == SUCCESS
    assert gpu.wait() == INVALID_HANDLE
    assert "was destroyed" in gpu.driver.misuse()
    assert gpu("cuCtxSetCurrent", ctypes.c_void_p()) == SUCCESS
    assert gpu("cuMemFreeHost", p) == INVALID_CONTEXT
    assert "without a context" in gpu.driver.misuse()


def test_shared_memory_beyond_48_KiB_is_asked_for(gpu: Gpu) -> None:
    function = gpu.function("reverse<NONE>")
    x, y = gpu.memory(128), gpu.memory(128)
    assert gpu.launch(function, x, y, 128, shared=50_000) == INVALID_VALUE
    assert gpu("cuFuncSetAttribute", function, ctypes.c_int(8), ctypes.c_int(50_000)) == SUCCESS
    assert gpu.launch(function, x, y, 128, shared=50_000) == SUCCESS
    assert gpu("cuFuncSetAttribute", function, ctypes.c_int(8), ctypes.c_int(240_000)) == INVALID_VALUE
    assert gpu.launch(function, x, y, 128, threads=2048) == INVALID_VALUE


def test_more_threads_than_the_kernels_bound_are_refused(gpu: Gpu) -> None:
    x, y = gpu.memory(256), gpu.memory(256)
    assert gpu.launch(gpu.function("reverse<NONE>"), x, y, 128, threads=256) == INVALID_VALUE
    assert "reverse<NONE>: 256 threads a block, its bound is 128" in gpu.driver.misuse()


@pytest.mark.parametrize(("capability", "most"), [(75, 64), (80, 163), (86, 99), (90, 227), (120, 99)])
def test_shared_memory_is_that_of_the_architecture(capability: int, most: int) -> None:
    gpu = Gpu(capability=capability)
    function = gpu.function("reverse<NONE>")
    for kib, status in ((most, SUCCESS), (most + 1, INVALID_VALUE)):
        assert gpu("cuFuncSetAttribute", function, ctypes.c_int(8), ctypes.c_int(kib << 10)) == status
    gpu.driver.misuse()


def test_what_may_wait_spoils_a_capture_that_is_not_relaxed(gpu: Gpu) -> None:
    address = ctypes.c_uint64()
    event = gpu.made("cuEventCreate", ctypes.c_uint(2))
    for mode, status in ((0, CAPTURE_UNSUPPORTED), (1, CAPTURE_UNSUPPORTED), (2, SUCCESS)):
        for name, *args in (
            ("cuMemAlloc", ctypes.pointer(address), ctypes.c_size_t(64)),
            ("cuEventQuery", event),
        ):
            assert gpu("cuStreamBeginCapture", gpu.stream, ctypes.c_int(mode)) == SUCCESS
            assert gpu(name, *args) == status
            out = ctypes.c_void_p()
            assert (gpu("cuStreamEndCapture", gpu.stream, ctypes.pointer(out)) == SUCCESS) == (status == SUCCESS)
    assert gpu("cuStreamBeginCapture", gpu.stream, ctypes.c_int(3)) == INVALID_VALUE
    assert "while a stream is being captured" in gpu.driver.misuse()


def test_flags_that_do_not_exist_are_refused(gpu: Gpu) -> None:
    out = ctypes.c_void_p()
    graph = captured(gpu, gpu.function("reverse<NONE>"), gpu.memory(128), gpu.memory(128))
    plain, _ = gpu.pinned(1)
    host = gpu.made("cuMemHostAlloc", ctypes.c_size_t(64), ctypes.c_uint(0))
    event = gpu.made("cuEventCreate", ctypes.c_uint(0))
    for name, *args in (
        ("cuCtxCreate", ctypes.c_uint(0x100), ctypes.c_int(0)),
        ("cuStreamCreate", ctypes.c_uint(2)),
        ("cuEventCreate", ctypes.c_uint(8)),
        ("cuMemHostAlloc", ctypes.c_size_t(64), ctypes.c_uint(8)),
        ("cuMemHostGetDevicePointer", plain, ctypes.c_uint(1)),
        ("cuMemHostGetDevicePointer", host, ctypes.c_uint(0)),  # not allocated to have one
        ("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(16)),
    ):
        assert gpu(name, ctypes.pointer(out), *args) == INVALID_VALUE, name
    assert gpu("cuStreamWaitEvent", gpu.stream, event, ctypes.c_uint(4)) == INVALID_VALUE
    gpu.driver.misuse()


def test_time_is_asked_only_of_events_that_take_it(gpu: Gpu) -> None:
    events = [gpu.made("cuEventCreate", ctypes.c_uint(flags)) for flags in (0, 2)]
    for event in events:
        assert gpu("cuEventRecord", event, gpu.stream) == SUCCESS
    gpu.wait()
    took = ctypes.c_float()
    assert gpu("cuEventElapsedTime", ctypes.pointer(took), events[0], events[0]) == SUCCESS
    assert gpu("cuEventElapsedTime", ctypes.pointer(took), *events) == INVALID_HANDLE
    gpu.driver.misuse()


def test_peer_access_is_between_gpus_and_once() -> None:
    one = Gpu(devices=2)
    two = Gpu(1, driver=one.driver)
    can = ctypes.c_int()
    assert two("cuDeviceCanAccessPeer", ctypes.pointer(can), ctypes.c_int(1), ctypes.c_int(0)) == SUCCESS
    assert can.value == 1
    assert two("cuCtxEnablePeerAccess", one.context, ctypes.c_uint(0)) == SUCCESS
    assert two("cuCtxEnablePeerAccess", one.context, ctypes.c_uint(0)) == PEER_ALREADY_ENABLED
    assert two("cuCtxEnablePeerAccess", two.context, ctypes.c_uint(0)) == INVALID_DEVICE
    two.driver.misuse()


def test_arguments_of_another_size_are_refused(gpu: Gpu) -> None:
    args, size = Args(None, None, 0), ctypes.c_size_t(16)
    extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(args), 2, ctypes.addressof(size), 0)
    numbers = [ctypes.c_uint(v) for v in (1, 1, 1, 128, 1, 1, 0)]
    status = gpu(
        "cuLaunchKernel", gpu.function("reverse<NONE>"), *numbers, gpu.stream, ctypes.c_void_p(), ctypes.pointer(extra)
    )
    assert status == INVALID_VALUE
    assert "takes 24 bytes of arguments, not 16" in gpu.driver.misuse()
