"""`ggml-rpc-server --warmup`: all kernels compiled ahead, found again, and nothing lost when it ends early."""

from __future__ import annotations

import importlib
import io
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ggml_rpc.server
from ggml_rpc.cli import server as server_command
from ggml_rpc.devices import cuda
from ggml_rpc.devices.cuda import driver as discovery
from ggml_rpc.devices.cuda import loading
from ggml_rpc.devices.cuda.programs import CACHE_VARIABLE
from ggml_rpc.errors import DeviceError

NAMES = [("scan", "ssm_conv"), ("linear", "solve_triangle"), ("reduce", "sum_rows"), ("reduce", "arg_max")]
FILES = 3


class StandIn:
    """NVRTC's functions without a compiler: the code is the list of names.

    Parameters
    ----------
    before : callable, optional
        Called with the names before they are compiled; returns whether they fail.
    """

    def __init__(self, before: Callable[[Sequence[str]], bool] = lambda _: False) -> None:
        self.before = before
        self.compiled: list[list[str]] = []
        self._lock = threading.Lock()

    def nvrtcVersion(self) -> tuple[int, int, int]:
        return 0, 13, 0

    def nvrtcGetSupportedArchs(self) -> tuple[int, list[int]]:
        return 0, [75, 80, 90]

    def nvrtcCreateProgram(self, _source: bytes, _name: bytes, *_: Any) -> tuple[int, list[str]]:
        return 0, []

    def nvrtcAddNameExpression(self, program: list[str], name: bytes) -> tuple[int]:
        program.append(name.decode())
        return (0,)

    def nvrtcCompileProgram(self, program: list[str], _n: int, _options: Sequence[bytes]) -> tuple[int]:
        if self.before(program):
            return (6,)
        with self._lock:
            self.compiled.append(program)
        return (0,)

    def nvrtcGetLoweredName(self, _program: list[str], name: bytes) -> tuple[int, bytes]:
        return 0, b"_Z" + name

    def nvrtcGetCUBINSize(self, program: list[str]) -> tuple[int, int]:
        return 0, 2 + len(repr(program))

    def nvrtcGetCUBIN(self, _program: list[str], _code: bytes) -> tuple[int]:
        return (0,)

    def nvrtcGetProgramLogSize(self, _program: list[str]) -> tuple[int, int]:
        return 0, 1  # an empty text

    def nvrtcGetProgramLog(self, _program: list[str], log: bytes) -> tuple[int]:
        assert len(log) > 1
        return (0,)

    def nvrtcDestroyProgram(self, _program: list[str]) -> tuple[int]:
        return (0,)

    @property
    def names(self) -> list[str]:
        """All that was compiled."""
        return sorted(name.removeprefix("ggr::cuda::") for names in self.compiled for name in names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where compiled kernels are kept, on a machine with a GPU and a small registry."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "kernels"))
    here = discovery.Found((discovery.FoundGpu(0, "NVIDIA H200", 90),), "")
    for module in (cuda, discovery):
        monkeypatch.setattr(module, "found", lambda: here)
    monkeypatch.setattr(cuda, "registry", lambda: NAMES)
    monkeypatch.setattr(loading, "TOGETHER", 1)

    class NoServer:
        def __init__(self, **_: Any) -> None:
            raise OSError("the end of the test")

    monkeypatch.setattr(ggml_rpc.server, "Server", NoServer)
    return tmp_path / "kernels"


def with_compiler(monkeypatch: pytest.MonkeyPatch, nvrtc: Any) -> Any:
    monkeypatch.setattr(cuda, "kernels_of", lambda gpu: loading.Kernels(gpu.capability, None, nvrtc))
    return nvrtc


def warm() -> int:
    """Run the command; 1 where it gets as far as the server."""
    return server_command.main(["--device", "CUDA0", "--warmup", "-p", "0"])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_all_kernels_are_compiled_and_then_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = with_compiler(monkeypatch, StandIn())
    assert warm() == 1
    assert capsys.readouterr().err.splitlines() == [
        "kernels for sm_90: 0 of 4",
        "kernels for sm_90: 4 of 4",
        "ggml-rpc-server: error: the end of the test",
    ]
    assert compiler.names == sorted(name for _, name in NAMES)
    assert [path.suffix for path in files(folder)] == [".program"] * len(NAMES)
    again = with_compiler(monkeypatch, StandIn())
    assert warm() == 1
    assert capsys.readouterr().err.splitlines()[:-1] == ["kernels for sm_90: 4 of 4"]
    assert again.compiled == []


def test_kernels_of_a_file_are_compiled_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "TOGETHER", 16)
    compiler = with_compiler(monkeypatch, StandIn())
    assert warm() == 1
    assert len(compiler.compiled) == len(files(folder)) == FILES


def test_a_terminal_sees_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    show = server_command.warming(out)
    for done in range(5):
        show("sm_90", done, 4)
    first, *_, last = out.getvalue().split("\r")[1:]
    assert first == f"[{'.' * server_command.BAR}] kernels for sm_90: 0 of 4"
    assert last == f"[{'#' * server_command.BAR}] kernels for sm_90: 4 of 4\n"


def test_what_was_compiled_before_an_interrupt_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does it: the server ends with 0, nothing more is begun, the next run does the rest."""
    monkeypatch.setattr(loading, "processors", lambda: 1)
    begun: list[str] = []

    def interrupt(names: Sequence[str]) -> bool:
        begun.extend(names)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            stopped.wait(10)
        return False

    stopped = threading.Event()
    shutdown = loading.ThreadPoolExecutor.shutdown

    def seen(pool: Any, *args: Any, **options: Any) -> None:
        stopped.set()
        shutdown(pool, *args, **options)

    monkeypatch.setattr(loading.ThreadPoolExecutor, "shutdown", seen)
    with_compiler(monkeypatch, StandIn(interrupt))
    assert warm() == 0
    assert len(begun) == len(files(folder)) == 2
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_run_after_an_interrupt_does_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = loading.Kernels(90, None, StandIn())
    kernels.cache.programs("scan", ["ssm_conv"])
    # What a process that was killed leaves behind.
    (place,) = {path.parent for path in files(folder)}
    (place / "tmp1.part").write_bytes(b"half of a")
    (place / "other.program").write_bytes(b"damaged by the disk")
    compiler = with_compiler(monkeypatch, StandIn())
    assert warm() == 1
    assert compiler.names == ["arg_max", "solve_triangle", "sum_rows"]


def test_a_kernel_that_cannot_be_compiled_ends_it_and_leaves_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "processors", lambda: 1)
    with_compiler(monkeypatch, StandIn(lambda names: names[0].endswith("sum_rows")))
    assert warm() == 1
    assert "error: NVRTC cannot compile reduce.cu for sm_90" in capsys.readouterr().err
    there = len(files(folder))  # the two before it, and the one after it if that was begun
    assert there in (2, 3)
    compiler = with_compiler(monkeypatch, StandIn())
    assert warm() == 1
    assert compiler.names == ["arg_max", "sum_rows"][there - 2 :]


def test_a_module_is_loaded_once_a_context(folder: Path) -> None:
    loads: list[bytes] = []
    context = [7]

    def load(code: bytes) -> tuple[int, int]:
        loads.append(code)
        return 0, len(loads)

    driver = SimpleNamespace(
        cuCtxGetCurrent=lambda: (0, context[0]),
        cuCtxGetId=lambda c: (0, 100 + c),
        cuModuleLoadData=load,
        cuModuleGetFunction=lambda module, symbol: (0, 1000 * module + len(symbol)),
    )
    nvrtc = StandIn()
    kernels = loading.Kernels(90, driver, nvrtc)
    both = [("reduce", "sum_rows"), ("reduce", "arg_max")]
    first = kernels.load(both)
    assert first == [1000 + len("_Zggr::cuda::sum_rows"), 1000 + len("_Zggr::cuda::arg_max")]
    assert kernels.load(both[1:]) == first[1:]
    assert len(loads) == 1
    kernels.load([*both, ("scan", "ssm_conv")])
    assert len(loads) == 2
    # A context that was lost takes its modules with it.
    context[0] = 8
    assert kernels.load(both[:1])[0] // 1000 == 3
    assert len(nvrtc.compiled) == 2
    driver.cuModuleLoadData = lambda code: (2, None)
    context[0] = 9
    with pytest.raises(DeviceError, match="cuModuleLoadData failed for sm_90"):
        kernels.load(both)


def test_nvidias_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-python is not installed")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:
        pytest.skip("nvidia-cuda-nvrtc is not installed")
    with_compiler(monkeypatch, importlib.import_module("cuda.bindings.nvrtc"))
    for _ in range(2):
        assert warm() == 1
        assert "kernels for sm_90: 4 of 4" in capsys.readouterr().err.splitlines()
    assert all(b"\x7fELF" in path.read_bytes() for path in files(folder))
    monkeypatch.setattr(nvrtc, "nvrtcCompileProgram", lambda *_: pytest.fail("compiled again"))
    assert warm() == 1
