"""Why there is no GPU: one plain line each."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ggml_rpc import devices
from ggml_rpc.cli import main as commands
from ggml_rpc.cli import server as server_command
from ggml_rpc.devices import cuda
from ggml_rpc.devices.cuda import driver as discovery
from ggml_rpc.devices.cuda.programs import source_folder
from ggml_rpc.errors import DeviceError
from tests.cuda.driver_api import FORMS, declared, form


def machine(**changes: Any) -> tuple[Any, Any]:
    """Return stand-ins of cuda.bindings.driver and nvrtc."""
    values: dict[str, Any] = {
        "init": 0,
        "version": 13000,
        "gpus": [("NVIDIA H200", 90)],
        "nvrtc": (0, 13, 0),
        "missing": "",
    }
    values.update(changes)

    def init(flags: int) -> tuple[int]:
        if isinstance(values["init"], Exception):
            raise values["init"]
        return (values["init"],)

    def nvrtc_version() -> tuple[int, int, int]:
        if isinstance(values["nvrtc"], Exception):
            raise values["nvrtc"]
        return values["nvrtc"]  # type: ignore[no-any-return]

    def attribute(which: int, ordinal: int) -> tuple[int, int]:
        return 0, divmod(values["gpus"][ordinal][1], 10)[which - discovery.CAPABILITY_MAJOR]

    asked: dict[str, int] = {}

    def address(name: bytes, version: int, flags: int) -> tuple[int, int, int]:
        asked[name.decode()] = version
        return (0, 0, 1) if name.decode() == values["missing"] else (0, 0x1000 + len(asked), 0)

    driver = SimpleNamespace(
        cuInit=init,
        cuDriverGetVersion=lambda: (0, values["version"]),
        cuDeviceGetCount=lambda: (0, len(values["gpus"])),
        cuDeviceGetName=lambda n, i: (0, values["gpus"][i][0].encode().ljust(n, b"\0")),
        cuDeviceGetAttribute=attribute,
        CUdevice_attribute=int,
        cuGetProcAddress=address,
        cuGetErrorName=lambda status: (0, b"CUDA_ERROR_SYSTEM_NOT_READY"),
        asked=asked,
    )
    return driver, SimpleNamespace(nvrtcVersion=nvrtc_version)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"init": RuntimeError("libcuda")}, "no NVIDIA driver is installed (libcuda.so.1 cannot be loaded)"),
        ({"init": 100}, "the NVIDIA driver finds no GPU (CUDA_VISIBLE_DEVICES=7)"),
        ({"gpus": []}, "the NVIDIA driver finds no GPU"),
        ({"init": 35}, "the NVIDIA driver is too old for this GPU or this cuda-python"),
        ({"init": 802}, "the NVIDIA driver does not start: CUDA_ERROR_SYSTEM_NOT_READY"),
        ({"version": 11080}, "the NVIDIA driver is too old: it is of CUDA 11.8, 12.0 is needed"),
        ({"nvrtc": RuntimeError("nvrtc")}, f"the kernels' compiler NVRTC is not installed ({discovery.INSTALL})"),
        (
            {"version": 12040},
            "the NVIDIA driver is too old: it is of CUDA 12.4, the installed compiler NVRTC of 13.0 (",
        ),
        ({"gpus": [("Tesla P4", 61)]}, "Tesla P4 is too old: compute capability 6.1, 7.5 is needed"),
        ({"missing": "cuGraphLaunch"}, "the NVIDIA driver is too old: it has no cuGraphLaunch"),
    ],
)
def test_says_why_there_is_none(changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    found = discovery.look(*machine(**changes))
    assert found.gpus == ()
    assert found.reason.startswith(f"no CUDA devices: {says}")
    assert "\n" not in found.reason


def test_finds_what_can_be_used() -> None:
    driver, nvrtc = machine(gpus=[("NVIDIA H200", 90), ("Tesla P4", 61), ("NVIDIA L4", 89)])
    found = discovery.look(driver, nvrtc)
    assert [(gpu.ordinal, gpu.name, gpu.capability) for gpu in found.gpus] == [
        (0, "NVIDIA H200", 90),
        (2, "NVIDIA L4", 89),
    ]
    assert found.reason == ""
    assert list(found.table) == [0x1001 + i for i in range(len(cuda.driver_functions()))]
    # What a driver gives for the version that is asked for takes the arguments that are declared.
    assert list(driver.asked) == cuda.driver_functions() == list(declared())
    for name, version in driver.asked.items():
        assert form(name, version) == declared()[name], name


def test_forms_that_came_later_are_told_apart() -> None:
    """The table of forms is what the test above relies on."""
    assert form("cuCtxCreate", 12000) == "ppiii"
    assert form("cuCtxCreate", 13000) == "ppii"
    assert form("cuGraphInstantiate", 12000) == "ppppl"
    assert form("cuMemAlloc", 3010) == "pi"
    assert form("cuGraphLaunch", 9000) is None


def test_the_forms_are_those_of_an_installed_toolkit() -> None:
    headers = sorted(Path("/usr/local").glob("cuda*/include/cudaTypedefs.h"))
    if not headers:
        pytest.skip("no CUDA toolkit is installed")
    text = headers[-1].read_text()
    for name, forms in FORMS.items():
        found = {
            int(version): 1 + arguments.count(",")
            for version, arguments in re.findall(rf"PFN_{name}_v(\d+)\)\(([^;]*)\);", text)
        }
        assert {version: len(kinds) for version, kinds in forms.items()} == found, name


NONE = "no CUDA devices: no NVIDIA driver is installed (libcuda.so.1 cannot be loaded)"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (cuda, discovery):
        monkeypatch.setattr(module, "found", lambda: discovery.none(NONE.removeprefix("no CUDA devices: ")))


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_there_is_refused_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert devices.available() == ["CPU"]
    assert devices.default_names() == ["CPU"]
    with pytest.raises(DeviceError) as error:
        devices.open_devices(["CUDA0"])
    assert str(error.value) == f"unknown device 'CUDA0'; available devices: CPU ({NONE})"
    handler = signal.getsignal(signal.SIGINT)
    for name in ("CUDA0", "cuda1", "CPU,CUDA0"):
        assert server_command.main(["--device", name, "-p", "0"]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("ggml-rpc-server: error: unknown device: ")
        assert lines[-1] == NONE
    assert signal.getsignal(signal.SIGINT) is handler  # of the program that asked for a server


@pytest.mark.usefixtures("no_gpu")
def test_ops_are_listed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["devices", "--ops", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["ops"]
    assert {op for op, row in rows.items() if row["cuda"]} == set(cuda.ops_with_kernels()) & set(rows)


def test_the_kernels_sources_are_found() -> None:
    assert source_folder() == Path(__file__).resolve().parents[2] / "csrc"
