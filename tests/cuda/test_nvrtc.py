"""NVRTC compiles every kernel of the registry, for an old, a middle and a new architecture, without a warning."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest

from tests.cuda.matrix import files
from tests.cuda.nvrtc import CompileError, Usage, _usages, compile_file, library

ARCHITECTURES = (75, 90, 120)
needs_compiler = pytest.mark.skipif(library() is None, reason="nvidia-cuda-nvrtc is not installed")
# Static and dynamic shared memory together: what a block of any architecture may have without asking.
STATIC_SHARED_AT_MOST = 48 << 10


@pytest.fixture(scope="module")
def compilations(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, int], Future[dict[str, Usage]]]]:
    """Return what the chosen tests of this file wait for: a compiler on each processor, in processes of their own."""
    items = [item for item in request.session.items if getattr(item, "originalname", "") == "test_compiles"]
    chosen = [item.callspec.params for item in items]  # type: ignore[attr-defined]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=spawn) as pool:
        yield {
            (p["file"], p["arch"]): pool.submit(compile_file, p["file"], files()[p["file"]], p["arch"]) for p in chosen
        }
        pool.shutdown(cancel_futures=True)


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", list(files()))
def test_compiles(compilations: dict[tuple[str, int], Future[dict[str, Usage]]], file: str, arch: int) -> None:
    usages = compilations[file, arch].result()
    assert set(usages) == set(files()[file])
    for name, usage in usages.items():
        assert 0 < usage.registers <= 255, name
        assert usage.shared_bytes <= STATIC_SHARED_AT_MOST, name


@needs_compiler
def test_errors_carry_the_log() -> None:
    with pytest.raises(CompileError, match="no_such_kernel"):
        compile_file("elementwise", ["no_such_kernel"], 90)


def test_usage_is_read_from_the_log() -> None:
    log = """
ptxas info    : 21 bytes gmem
ptxas info    : Compiling entry function '_Zone' for 'sm_90'
ptxas info    : Function properties for _Zone
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 44 registers, used 1 barriers, 128 bytes smem
ptxas info    : Compile time = 636.317 ms
ptxas info    : Compiling entry function '_Ztwo' for 'sm_90'
ptxas info    : Function properties for _Ztwo
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 62 registers, used 0 barriers
"""
    one, two = _usages(log).values()
    assert (one.registers, one.shared_bytes, one.stack_bytes, one.spill_bytes) == (44, 128, 16, 12)
    assert (two.registers, two.shared_bytes, two.stack_bytes, two.spill_bytes) == (62, 0, 0, 0)
