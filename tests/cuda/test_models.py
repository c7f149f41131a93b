"""Whole models on the emulated device: nothing is left to the CPU, and logits are those of the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ggml_rpc.client.local import LocalDevice, local_devices
from ggml_rpc.peers import prepare_peer
from ggml_rpc.server import Server
from tests.cuda.host.device import EmulatedDriver
from tests.cuda.recurrent_models import BUILDERS
from tests.cuda.recurrent_models import cached as recurrent
from tests.e2e.conftest import need
from tests.llm.models import MODELS, cached
from tests.llm.reference import nmse, stock_logits
from tests.llm.test_arch import SHAPES, run

PROMPT = [(37 * i + 11) % 253 for i in range(12)]
BATCHES = [10, 1, 1]


def small(name: str, kind: str) -> Path:
    """Return a model of two layers whose rows hold whole blocks of 256."""
    model = MODELS[name]
    return cached(
        replace(model, name=f"{name}-two", n_layer=2, n_embd=256, n_ff=256, n_head=4, n_head_kv=2, n_vocab=256), kind
    )


def close(kind: str) -> float:
    """Return the bound of the error: how far stock llama.cpp is from itself with other rounding, and a third more."""
    return 1e-5 if kind in {"F32", "F16"} else 1e-3


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("kind", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("name", SHAPES)
def test_no_node_of_a_model_is_left_to_the_cpu(name: str, kind: str, flash: bool, driver: EmulatedDriver) -> None:
    gpu = driver.gpu()
    device = LocalDevice(gpu.device("CUDA0", "emulated GPU"))
    path = small(name, kind)
    got = run(path, [device], PROMPT, BATCHES, flash_attn=flash)
    assert gpu.fallbacks() == {}
    assert gpu.counts()["launches"] > 0
    expected = run(path, local_devices(threads=2), PROMPT, BATCHES, flash_attn=flash)
    error = nmse(got, expected)
    print(f"{name} {kind} {flash}: NMSE {error:.1e}")
    assert error < close(kind)


@pytest.mark.peer
@pytest.mark.parametrize("flash", ["off", "on"])
@pytest.mark.parametrize("kind", ["F32", "Q4_K_M"])
def test_a_stock_client_gets_the_logits_of_its_cpu(kind: str, flash: str, driver: EmulatedDriver) -> None:
    need("stock peer 8.0", lambda: prepare_peer("8.0"))
    gpu = driver.gpu()
    path = small("llama", kind)
    with Server(devices=[gpu.device("CUDA0", "emulated GPU")], port=0) as server:
        got = stock_logits(path, PROMPT, BATCHES, flash=flash, servers=[server.endpoint])
    assert gpu.fallbacks() == {}
    assert nmse(got, stock_logits(path, PROMPT, BATCHES, flash=flash)) < close(kind)


@pytest.mark.peer
@pytest.mark.parametrize("arch", BUILDERS)
def test_recurrent_models_of_a_stock_client(arch: str, driver: EmulatedDriver) -> None:
    """Recurrent and hybrid architectures: prefill and single tokens, and nothing is left to the CPU."""
    need("stock peer 8.0", lambda: prepare_peer("8.0"))
    gpu = driver.gpu()
    path = recurrent(arch)
    with Server(devices=[gpu.device("CUDA0", "emulated GPU")], port=0) as server:
        got = stock_logits(path, PROMPT, BATCHES, servers=[server.endpoint])
    assert gpu.fallbacks() == {}
    error = nmse(got, stock_logits(path, PROMPT, BATCHES))
    print(f"{arch}: NMSE {error:.1e}")
    assert error < close("F32")
