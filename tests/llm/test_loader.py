"""Weights arrive where they belong, and nothing stays behind when they do not."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggml_rpc.client import remote
from ggml_rpc.client.device import Device
from ggml_rpc.client.remote import RemoteDevice
from ggml_rpc.errors import (
    ConnectionLost,
    ContextError,
    DeadlineExceeded,
    DeviceError,
    ModelError,
    PlacementError,
    RpcError,
    ServerRefused,
)
from ggml_rpc.llm.devices import DeviceSet, open_devices, split_endpoints
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.loader import Loader, LoadProgress
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.placement import Placement
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.llm.weights import ModelFile
from ggml_rpc.peers.process import ServerProcess, own_server_command
from ggml_rpc.server import Server

from .models import MODELS, cached, write
from .remote import drained, endpoints, held, servers

SMALL = ContextSettings(n_ctx=256, n_ubatch=32)


@pytest.fixture(scope="module")
def path() -> Path:
    """Return a random model of three layers, 2 MB."""
    return cached(MODELS["llama"], "Q4_K")


@pytest.fixture
def pair() -> Iterator[tuple[list[Server], DeviceSet]]:
    """Run two servers and connect to them."""
    with servers(2) as running, open_devices(endpoints(running), threads=1) as devices:
        yield running, devices


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask servers by hash for tensors of a kilobyte already."""
    monkeypatch.setattr(remote, "HASH_THRESHOLD_BYTES", 1024)


def contents(model: Model) -> dict[str, tuple[str, bytes]]:
    """Return each weight's device and what lies there."""
    out = {}
    for name, t in model.weights.tensors.items():
        device: Device = t.buffer.device  # type: ignore[union-attr]
        out[name] = (device.name, bytes(device.read_bytes(t)))
    return out


# ---- Devices ---------------------------------------------------------------------------------------------------------


def test_names_run_through_all_servers() -> None:
    with (
        Server("CPU,CPU", port=0, threads=1) as first,
        Server("CPU", port=0, threads=1) as second,
        open_devices(f"{first.endpoint}, {second.endpoint}", threads=1) as devices,
    ):
        assert [d.name for d in devices.all] == ["RPC0", "RPC1", "RPC2", "CPU"]
        assert [d.endpoint for d in devices.remote] == [first.endpoint, first.endpoint, second.endpoint]
        assert devices.select(None) == list(devices.remote)
        assert devices.select("rpc2, CPU") == [devices.remote[2], devices.host]
        assert devices.select(["RPC1[1.2.3.4:50052]"]) == [devices.remote[1]]
        assert devices.select("none") == [devices.host]
        for wrong, said in (
            ("RPC3", "unknown device 'RPC3'; this run has RPC0"),
            ("RPC0,RPC0", "stands twice"),
            (",", "is empty"),
        ):
            with pytest.raises(DeviceError, match=said):
                devices.select(wrong)
    assert first.n_connections == 0


def test_this_machine_alone() -> None:
    with open_devices(threads=1) as devices:
        assert devices.select(None) == [devices.host]


def test_one_server_of_two_that_cannot_be_reached() -> None:
    with servers(1) as (server,):
        with pytest.raises(ConnectionLost, match=r"127\.0\.0\.1:1\b"):
            open_devices([server.endpoint, "127.0.0.1:1"], threads=1)
        assert drained(server)


def test_lists_of_endpoints() -> None:
    assert split_endpoints("a:1, b") == ["a:1", "b"]
    assert split_endpoints("") == []
    assert split_endpoints(()) == []
    with pytest.raises(ValueError, match="empty entry"):
        split_endpoints("a:1,,b")


# ---- Loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", ["8.0.0", "7.0.0", "3.0.0", "2.0.0"])
def test_weights_arrive(path: Path, proto: str) -> None:
    with servers(2, protocols=proto) as running, open_devices(endpoints(running), threads=1) as devices:
        with Model.open(
            path,
            devices,
            device="RPC0,CPU,RPC1",
            tensor_split="1,1,2",
            override_tensor=r"blk\.2\.ffn_up=RPC0,token_embd=RPC1",
            settings=SMALL,
        ) as model:
            found = contents(model)
            assert model.placement.layers == ("RPC0", "CPU", "RPC1")
            assert model.placement.output == "RPC1"
            assert found["blk.2.ffn_up.weight"][0] == "RPC0"
            assert found["token_embd.weight"][0] == "RPC1"
            assert found["blk.1.attn_q.weight"][0] == "CPU"
            with GgufFile.open(path) as file:
                assert {name: data for name, (_, data) in found.items()} == {
                    name: bytes(t.data) for name, t in file.tensors.items()
                }
            assert sum(use.weights for use in model.usage()) == sum(model.loaded.nbytes.values())
        for device in devices.remote:
            device.memory()
        assert [held(server) for server in running] == [0, 0]


def test_tied_output_is_the_table_of_tokens(pair: tuple[list[Server], DeviceSet]) -> None:
    _, devices = pair
    path = cached(MODELS["gemma3-full"], "Q4_K")
    with Model.open(path, devices, settings=SMALL) as model:
        with GgufFile.open(path) as file:
            expected = bytes(file.tensors["token_embd.weight"].data)
        assert contents(model)["output.weight"] == (model.placement.output, expected)
        assert "token_embd.weight" not in model.weights.tensors


def test_progress_counts_every_byte_of_every_device(path: Path, pair: tuple[list[Server], DeviceSet]) -> None:
    _, devices = pair
    seen: list[LoadProgress] = []
    with Model.open(path, devices, settings=SMALL, tensor_split=[1, 1], progress=seen.append) as model:
        weights = model.weights.tensors
    last = {p.device.name: p for p in seen}
    assert set(last) == {"RPC0", "RPC1"}
    assert sum(p.bytes_total for p in last.values()) == sum(t.nbytes for t in weights.values())
    for p in last.values():
        assert (p.bytes_done, p.bytes_cached) == (p.bytes_total, 0)
    assert Counter(p.device.name for p in seen).total() == len(weights)


@pytest.mark.usefixtures("hashed")
def test_what_a_server_has_is_not_sent_again(path: Path, tmp_path: Path) -> None:
    with servers(1, cache_dir=tmp_path) as (server,), open_devices(server.endpoint, threads=1) as devices:
        cached_bytes = []
        for _ in range(2):
            seen: list[LoadProgress] = []
            with Model.open(path, devices, settings=SMALL, progress=seen.append) as model, GgufFile.open(path) as file:
                assert all(data == bytes(file.tensors[name].data) for name, (_, data) in contents(model).items())
            cached_bytes.append(seen[-1].bytes_cached)
        assert cached_bytes[0] == 0
        with GgufFile.open(path) as file:
            sizes = [t.nbytes for t in file.tensors.values() if t.name != "token_embd.weight"]
        assert cached_bytes[1] == sum(n for n in sizes if n > 1024)


@pytest.mark.usefixtures("hashed")
def test_an_interrupted_load_is_resumed(path: Path, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop_half_way(p: LoadProgress) -> None:
        if p.bytes_done > p.bytes_total // 2:
            raise Interrupted

    with servers(1, cache_dir=tmp_path) as (server,), open_devices(server.endpoint, threads=1) as devices:
        with pytest.raises(Interrupted):
            Model.open(path, devices, settings=SMALL, progress=stop_half_way)
        devices.remote[0].memory()
        assert held(server) == 0
        seen: list[LoadProgress] = []
        with Model.open(path, devices, settings=SMALL, progress=seen.append):
            pass
        assert 0 < seen[-1].bytes_cached < seen[-1].bytes_total


@pytest.mark.usefixtures("hashed")
def test_nothing_is_hashed_twice(
    path: Path, pair: tuple[list[Server], DeviceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, devices = pair
    hashes: list[int] = []
    original, lock = remote.fnv1a_64, threading.Lock()

    def counted(data: memoryview) -> int:
        with lock:
            hashes.append(data.nbytes)
        return original(data)

    monkeypatch.setattr(remote, "fnv1a_64", counted)
    names = {d.name: d for d in devices.all}
    with GgufFile.open(path) as file:
        model = ModelFile.read(file)
        loader = Loader()
        for name in ("RPC0", "RPC1"):
            loader.load(model, Placement((name,) * 3, name), names).free()
        large = [model.tensor(s).nbytes for s in model.specs if model.tensor(s).nbytes > 1024 and s.layer != -1]
    assert sorted(hashes) == sorted(large)


def test_what_lies_right_already_stays(path: Path, pair: tuple[list[Server], DeviceSet]) -> None:
    running, devices = pair
    names = {d.name: d for d in devices.all}
    with GgufFile.open(path) as file:
        model = ModelFile.read(file)
        loader = Loader()
        first = loader.load(model, Placement(("RPC0", "RPC0", "RPC1"), "RPC1"), names)
        second = loader.load(model, Placement(("RPC0", "RPC0", "RPC0"), "CPU"), names, keep=first)
        for name, t in second.weights.tensors.items():
            assert (t is first.weights.tensors[name]) == name.startswith(("blk.0.", "blk.1."))
        second.free()
    for device in devices.remote:
        device.memory()
    assert [held(server) for server in running] == [0, 0]


# ---- What goes wrong -------------------------------------------------------------------------------------------------


def with_nan(path: Path) -> Path:
    """Put a NaN into a norm in the file's third layer."""
    with GgufFile.open(path) as file:
        at = file.tensors["blk.2.ffn_norm.weight"].file_offset + 8
    with open(path, "r+b") as out:
        out.seek(at)
        out.write(np.float32(np.nan).tobytes())
    return path


def test_weights_that_are_no_numbers(pair: tuple[list[Server], DeviceSet], tmp_path: Path) -> None:
    running, devices = pair
    bad = tmp_path / "bad.gguf"
    write(bad, MODELS["llama"], "F16")
    with_nan(bad)
    with pytest.raises(ModelError, match=r"'blk\.2\.ffn_norm\.weight' holds numbers that are NaN") as caught:
        Model.open(bad, devices, settings=SMALL)
    assert "\n" not in str(caught.value)
    for device in devices.remote:
        device.memory()
    assert [held(server) for server in running] == [0, 0]
    with Model.open(bad, devices, settings=SMALL, check=False):
        assert held(running[0]) > 0


def test_a_server_that_dies_while_loading(path: Path) -> None:
    with servers(2) as (good, bad), open_devices(endpoints([good, bad]), threads=1) as devices:

        def end(p: LoadProgress) -> None:
            if p.device.name == "RPC1":
                bad.close()

        with pytest.raises((ConnectionLost, ServerRefused), match=bad_name(devices, "RPC1")):
            Model.open(path, devices, settings=SMALL, tensor_split="1,1", progress=end)
        devices.remote[0].memory()
        assert held(good) == 0


def bad_name(devices: DeviceSet, name: str) -> str:
    """Return the endpoint that an error must name."""
    return str(devices.find(name).endpoint)


def test_a_type_that_a_device_does_not_know(
    path: Path, pair: tuple[list[Server], DeviceSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, devices = pair
    monkeypatch.setattr(RemoteDevice, "has_type", lambda self, name: name != "Q4_K")
    with pytest.raises(DeviceError, match=r"RPC\d .* does not know the type Q4_K of tensor 'blk"):
        Model.open(path, devices, settings=SMALL)
    assert [held(server) for server in running] == [0, 0]


def test_no_room(path: Path, pair: tuple[list[Server], DeviceSet], monkeypatch: pytest.MonkeyPatch) -> None:
    running, devices = pair
    monkeypatch.setattr(RemoteDevice, "memory", lambda self: (100_000, 1 << 30))
    with pytest.raises(PlacementError, match="does not fit") as caught:
        Model.open(path, devices, settings=SMALL)
    assert {line.split()[0] for line in caught.value.table.splitlines()} == {"device", "RPC0", "RPC1"}
    assert [held(server) for server in running] == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"tensor_split": "1,2,3"}, PlacementError, "3 entries"),
        ({"tensor_split": "x"}, PlacementError, "no list of numbers"),
        ({"override_tensor": "blk"}, PlacementError, "REGEX=DEVICE"),
        ({"override_tensor": "blk=RPC9"}, DeviceError, "unknown device"),
        ({"device": "CUDA0"}, DeviceError, "unknown device 'CUDA0'; this run has RPC0 .*, RPC1 .*, CPU"),
        ({"device": "RPC0", "main_device": "RPC1"}, PlacementError, "takes no layers"),
        ({"settings": ContextSettings(n_ubatch=0)}, ContextError, "n_ubatch 0"),
        ({"settings": ContextSettings(type_k="Q9_9")}, ContextError, "Q9_9"),
    ],
)
def test_wrong_wishes(
    path: Path, pair: tuple[list[Server], DeviceSet], options: dict[str, Any], error: type[RpcError], said: str
) -> None:
    running, devices = pair
    with pytest.raises(error, match=said) as caught:
        Model.open(path, devices, **{"settings": SMALL, **options})
    assert "\n" not in str(caught.value)
    assert [held(server) for server in running] == [0, 0]


def truncated(path: Path, out: Path) -> None:
    out.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, out: Path) -> None:
    out.write_bytes(b"")


def no_gguf(path: Path, out: Path) -> None:
    out.write_bytes(b"PK\x03\x04" + bytes(1000))


def of_another_architecture(path: Path, out: Path) -> None:
    out.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba", 1))


def without_a_tensor(path: Path, out: Path) -> None:
    out.write_bytes(path.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))


def misshapen(path: Path, out: Path) -> None:
    # Another count of heads than the matrices have.
    data = path.read_bytes()
    key = b"llama.attention.head_count" + np.uint32(4).tobytes()
    at = data.index(key) + len(key)
    out.write_bytes(data[:at] + np.uint32(4).tobytes() + data[at + 4 :])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "end"),
        (empty, "is empty"),
        (no_gguf, "no GGUF"),
        (of_another_architecture, "'mamba', which cannot be run"),
        (without_a_tensor, r"no tensor 'blk\.1\.attn_q\.weight'"),
        (misshapen, "shape"),
    ],
)
def test_files_that_are_no_models(
    path: Path, pair: tuple[list[Server], DeviceSet], tmp_path: Path, spoil: Any, said: str
) -> None:
    running, devices = pair
    bad = tmp_path / "bad.gguf"
    spoil(path, bad)
    with pytest.raises(ModelError, match=said) as caught:
        Model.open(bad, devices, settings=SMALL)
    assert "\n" not in str(caught.value)
    assert [held(server) for server in running] == [0, 0]


def test_closing_twice_and_use_after(path: Path) -> None:
    model = Model.open(path, settings=SMALL)
    model.close()
    model.close()
    with pytest.raises(ValueError, match="was closed"):
        _ = model.weights


def test_an_interrupt_frees_everything(path: Path) -> None:
    main = threading.main_thread().ident
    assert main is not None
    interrupted = threading.Event()

    def interrupt(p: LoadProgress) -> None:
        if not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(main, signal.SIGINT)

    with servers(2) as running:
        with pytest.raises(KeyboardInterrupt):
            LLM(path, rpc=endpoints(running), n_ctx=256, tensor_split="1,1", progress=interrupt)
        assert all(drained(server) for server in running)


def test_a_server_that_hangs_while_loading(path: Path) -> None:
    with servers(1) as (good,), ServerProcess(own_server_command(), ["-t", "1"]) as bad:

        def stop(p: LoadProgress) -> None:
            if p.device.name == "RPC1" and p.bytes_done < p.bytes_total:
                os.kill(bad.pid, signal.SIGSTOP)

        try:
            with pytest.raises(DeadlineExceeded, match=bad.endpoint):
                LLM(path, rpc=[good.endpoint, bad.endpoint], n_ctx=256, tensor_split="1,1", timeout=1.0, progress=stop)
            assert drained(good)
        finally:
            os.kill(bad.pid, signal.SIGKILL)
