"""The emulator finds planted faults, says where they are, and lets right kernels alone."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tests.cuda.host import DeviceArray, Emulator, EmulatorError, args_struct
from tests.cuda.host.emulator import FORWARD, RANDOM, REVERSE

PLANTED = Path(__file__).parent / "kernels" / "planted.cu"
Args = args_struct("Args", ("from_", ctypes.c_void_p), ("to", ctypes.c_void_p), ("n", ctypes.c_int32))
ORDERS = [(FORWARD, 0), (REVERSE, 0), (RANDOM, 1), (RANDOM, 2)]
N = 256


@pytest.fixture(params=ORDERS, ids=["forward", "reverse", "random1", "random2"])
def emulator(request: pytest.FixtureRequest):
    """Return an emulator with each order of threads."""
    yield Emulator(*request.param)
    Emulator()


def run(emulator: Emulator, kernel: str, n: int = N, shared_bytes: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Run a kernel over `n` random numbers; return them and what it wrote."""
    x = emulator.array(np.random.default_rng(5).standard_normal(n).astype(np.float32))
    y = emulator.empty((n,), np.float32)
    emulator.launch(PLANTED, kernel, (-(-n // 128),), 128, Args(x.address, y.address, n), shared_bytes)
    return x.read(), y.read()


@pytest.mark.parametrize("kernel", ["reverse<NONE>", "reverse_async<NONE>"])
def test_a_right_kernel_passes(emulator: Emulator, kernel: str) -> None:
    x, y = run(emulator, kernel)
    assert np.array_equal(y, x.reshape(-1, 128)[:, ::-1].ravel())


FAULTS = {
    "reverse<READS_PAST_END>": r"reads 4 bytes at 1000 of an allocation of 1000 bytes",
    "reverse<WRITES_PAST_END>": r"writes 4 bytes at 1000 of an allocation of 1000 bytes",
    "reverse<NO_BARRIER>": r"race: (reads|writes) byte \d+ of static shared memory that thread \d+ (wrote|read)",
    "reverse<NO_SECOND_BARRIER>": r"race: (reads|writes) byte \d+ of static shared memory that thread \d+ (wrote|read)",
    "reverse<WARP_BARRIER_ONLY>": r"race: (reads|writes) byte \d+ of static shared memory that thread \d+ (wrote|read)",
    "reverse<SHARED_PAST_END>": r"index 128 is beyond the array",
    "reverse<FREE_INDEX>": r"index \d+ is beyond the array",
    "reverse<DIVERGENT_BARRIER>": r"deadlock: threads 0-126 at sync_block \(planted.cu:\d+\); thread 127 at sync_warp",
    "reverse<DIVERGENT_SHUFFLE>": r"deadlock: threads 0-15 at shuffle \(planted.cu:\d+\); threads 16-31 done",
    "reverse<DIFFERENT_SHUFFLES>": r"threads of one warp at different places: .*thread \d+ at shuffle_xor",
    "reverse<MISALIGNED>": r"address is no multiple of 4",
    "reverse<SHARED_BY_LOAD16>": r"load16 from shared memory",
    "reverse<NULL_POINTER>": r"reads 4 bytes at 0x[0-9a-f]+, which is no memory of the device",
    "reverse_async<NO_WAIT>": r"race: reads byte \d+ of static shared memory that thread \d+ is copying to",
    "reverse_async<NO_BARRIER>": r"race: ",
}


@pytest.mark.parametrize("kernel", list(FAULTS))
def test_a_planted_fault_is_found(emulator: Emulator, kernel: str) -> None:
    n = 250 if "PAST_END" in kernel and "SHARED" not in kernel else N
    with pytest.raises(EmulatorError, match=FAULTS[kernel]) as failure:
        run(emulator, kernel, n)
    assert str(failure.value).startswith(f"{kernel}, block (")


WIDE = {
    "WIDE_LOAD": 16,
    "WIDE_STORE": 16,
    "LOAD16": 16,
    "STREAM16": 16,
    "ASYNC_FROM": 16,
    "ASYNC_TO": 16,
    "MATRICES": 16,
    "LOAD8": 8,
}


@pytest.mark.parametrize("access", list(WIDE))
def test_a_wide_access_needs_an_aligned_address(emulator: Emulator, access: str) -> None:
    """The kernel's own line is named, not that of the function that it called."""
    x, y = emulator.array(np.zeros(160, np.float32)), emulator.empty((160,), np.float32)
    where = rf"address is no multiple of {WIDE[access]} at planted.cu:\d+"
    with pytest.raises(EmulatorError, match=where) as failure:
        emulator.launch(PLANTED, f"misaligned<{access}>", (1,), 32, Args(x.address, y.address, 1))
    assert str(failure.value).startswith(f"misaligned<{access}>, block (0, 0, 0), thread ")


def test_a_wrong_shuffle_gives_another_result(emulator: Emulator) -> None:
    x, y = run(emulator, "reverse<WRONG_SHUFFLE>")
    expected = x.reshape(-1, 128)[:, ::-1]
    assert not np.array_equal(y, expected.ravel())
    assert np.array_equal(y, expected.reshape(-1, 2)[:, ::-1].ravel())


def test_order_shows_a_race_between_blocks() -> None:
    results = set()
    for order in ORDERS:
        emulator = Emulator(*order)
        y = emulator.empty((1,), np.float32)
        emulator.launch(PLANTED, "last_wins", (7,), 32, Args(None, y.address, 1))
        results.add(float(y.read()[0]))
    Emulator()
    assert {0.0, 6.0} <= results


def test_threads_may_leave_early(emulator: Emulator) -> None:
    x, y = run(emulator, "early_leave", 64)
    assert np.array_equal(y, x.reshape(-1, 2)[:, ::-1].ravel()[::-1])


def test_each_block_finds_shared_memory_poisoned(emulator: Emulator) -> None:
    y = emulator.empty((3 * 64,), np.float32)
    emulator.launch(PLANTED, "left_behind", (3,), 32, Args(None, y.address, 1), 128)
    assert np.isnan(y.read()).all()


def test_dynamic_shared_memory_ends_where_the_launch_said(emulator: Emulator) -> None:
    y = emulator.empty((64,), np.float32)
    with pytest.raises(EmulatorError, match=r"4 bytes at 124 of 124 bytes of dynamic shared memory at planted.cu:\d+"):
        emulator.launch(PLANTED, "left_behind", (1,), 32, Args(None, y.address, 1), 124)


def test_freed_memory_is_gone(emulator: Emulator) -> None:
    x, y = emulator.array(np.zeros(128, np.float32)), emulator.empty((128,), np.float32)
    args = Args(x.address, y.address, 128)
    del x
    with pytest.raises(EmulatorError, match="of freed memory"):
        emulator.launch(PLANTED, "reverse<NONE>", (1,), 128, args)


def test_slack_may_be_read_but_not_written(emulator: Emulator) -> None:
    x, y = emulator.array(np.zeros(250, np.float32), slack=512), emulator.empty((256,), np.float32)
    emulator.launch(PLANTED, "reverse_async<NONE>", (2,), 128, Args(x.address, y.address, 256))
    y = emulator.empty((250,), np.float32, slack=512)
    with pytest.raises(EmulatorError, match=r"writes 4 bytes at 10[0-2]\d of an allocation of 1000 bytes"):
        emulator.launch(PLANTED, "reverse_async<NONE>", (2,), 128, Args(x.address, y.address, 256))


def test_after_a_failure_the_next_launch_is_fresh(emulator: Emulator) -> None:
    with pytest.raises(EmulatorError):
        run(emulator, "reverse<NO_BARRIER>")
    test_a_right_kernel_passes(emulator, "reverse<NONE>")


@pytest.mark.parametrize(
    ("grid", "threads", "shared"),
    [((0,), 32, 0), ((1,), 1025, 0), ((1,), 0, 0), ((1, 65536), 32, 0), ((1,), 32, 300_000)],
)
def test_launches_beyond_the_limits_fail(grid: tuple[int, ...], threads: int, shared: int) -> None:
    y = DeviceArray((64,), np.float32)
    with pytest.raises(EmulatorError, match="left_behind: "):
        Emulator().launch(PLANTED, "left_behind", grid, threads, Args(None, y.address, 1), shared)


def test_arguments_have_the_kernels_size() -> None:
    with pytest.raises(TypeError, match=r"takes 24 bytes, not 4"):
        Emulator().launch(PLANTED, "reverse<NONE>", (1,), 128, args_struct("A", ("n", ctypes.c_int32))(1))
