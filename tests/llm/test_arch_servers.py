"""The graphs of a model over servers: ours of every protocol, several at once, and stock ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

from ggml_rpc.client.device import Device
from ggml_rpc.client.local import local_devices
from ggml_rpc.client.remote import connect
from ggml_rpc.errors import ContextError
from ggml_rpc.llm.context import Context
from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.peers import prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess, own_server_command
from tests.e2e.conftest import need

from .models import MODELS, cached
from .placed import place
from .reference import BATCHES, PROMPT, nmse, stock_logits
from .test_arch import LONG, SHAPES, run

PROTOCOLS = ("8.0", "7.0", "6.0", "5.1", "5.0", "4.0.0", "3.6.1", "3.5.0", "3.0.0", "2.0", "ik-3.5.2", "ik-5.5.5")


@contextmanager
def serving(*commands: list[str]) -> Iterator[list[Device]]:
    """Run servers of one thread each and yield a device of each."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(ServerProcess(command, ["-t", "1"], environment=PATIENT)) for command in commands
        ]
        yield [stack.enter_context(connect(server.endpoint)).devices[0] for server in servers]


def own(protocol: str) -> list[str]:
    """Return the command of our server, fixed to a protocol."""
    return [*own_server_command(), "--proto", protocol]


@pytest.fixture(scope="module", params=["8.0", "7.0"])
def stock(request: pytest.FixtureRequest) -> Iterator[Device]:
    """Yield the device of a stock server."""
    peer = need(f"stock peer {request.param}", lambda: prepare_peer(request.param))
    with serving(peer.driver_command(["serve"])) as devices:
        yield devices[0]


@pytest.mark.peer
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flash_attn": True},
        {"flash_attn": True, "type_k": "q8_0", "type_v": "q8_0"},
        {"flash_attn": True, "type_k": "q4_0", "type_v": "q4_0"},
    ],
    ids=["plain", "flash", "q8_0", "q4_0"],
)
@pytest.mark.parametrize("kind", ["F32", "Q4_K_M"])
@pytest.mark.parametrize("name", [*SHAPES, "llama-mistral", "gemma2-wide-heads"])
def test_a_stock_server_computes_what_its_client_does(
    name: str, kind: str, settings: dict[str, Any], stock: Device
) -> None:
    """Bit for bit: the graphs are the same ones, and so are the kernels."""
    path = cached(MODELS[name], kind)
    got = run(path, [stock], PROMPT, BATCHES, **settings)
    flash = "on" if settings.get("flash_attn") else "off"
    expected = stock_logits(path, PROMPT, BATCHES, flash=flash, cache_type=settings.get("type_k", "f16"))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_carries_the_graphs(protocol: str) -> None:
    with serving(own(protocol)) as devices:
        for name in ("llama", "llama-moe", "gemma2", "phi3"):
            path = cached(MODELS[name], "F32")
            for flash in (False, True):
                if flash and protocol.startswith("ik") and name == "gemma2":
                    continue  # refused: see below
                settings: dict[str, Any] = {"flash_attn": flash}
                got = run(path, devices, PROMPT, BATCHES, **settings)
                expected = run(path, local_devices(threads=1), PROMPT, BATCHES, **settings)
                # Tables that do not count a result's uses have it stored, where others fuse.
                assert nmse(got, expected) < 1e-6


@pytest.mark.parametrize(("protocol", "multiple"), [("8.0", 1), ("3.6.1", 1), ("3.0.0", 64), ("ik-3.5.2", 16)])
def test_masks_for_older_servers_are_padded(protocol: str, multiple: int) -> None:
    with GgufFile.open(cached(MODELS["llama"], "F32")) as file, serving(own(protocol)) as devices:
        weights = place(file, devices)
        with Context(weights, n_ctx=256, flash_attn=True) as context:
            assert context.cache.mask_multiple == multiple
        with Context(weights, n_ctx=256) as context:
            assert context.cache.mask_multiple == 1


def test_fused_windows_are_refused_where_they_end_the_server() -> None:
    with GgufFile.open(cached(MODELS["gemma3"], "F32")) as file, serving(own("ik-3.5.2")) as devices:
        weights = place(file, devices)
        with pytest.raises(ContextError, match="turn flash attention off"):
            Context(weights, n_ctx=256, flash_attn=True)


@pytest.mark.parametrize(("name", "fused"), [("gemma3", False), ("llama", True)])
def test_attention_is_fused_where_it_can_be(name: str, fused: bool) -> None:
    with ServerProcess(own("ik-3.5.2"), ["-t", "1"]) as server, open_devices(server.endpoint, threads=1) as devices:
        settings = ContextSettings(n_ctx=256)
        with Model.open(cached(MODELS[name], "F32"), devices, settings=settings) as model, model.context() as context:
            assert context.cache.settings.flash == fused


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3moe", "gemma3", "phi3-long"])
def test_several_servers_compute_what_one_device_does(name: str, embedding: bool) -> None:
    """Bit for bit, with as many threads: flash attention splits a long row of keys among them."""
    path = cached(MODELS[name], "Q4_K_M")
    settings: dict[str, Any] = {"n_ubatch": 32, "flash_attn": True, "embedding": embedding}
    batches = [300, *[1] * 30]
    alone = run(path, local_devices(threads=1), LONG, batches, **settings)
    with serving(own("8.0"), own("7.0"), own("6.0")) as devices:
        assert np.array_equal(run(path, devices, LONG, batches, **settings), alone)
        # A device that is visited twice cannot flow; a mixed model is as right.
        a, b, _ = devices
        mixed = [a, b, a, *local_devices(threads=1)]
        assert np.array_equal(run(path, mixed, LONG, batches, **settings), alone)
