"""Models that differ in kind give a stock client the same on our server as on its own CPU.

Between them these graphs hold most ops that llama.cpp's models are made of: scans, delta nets, shifted tokens,
convolutions, latent attention, sinks, windows, indexers, relative positions, experts in groups.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggml_rpc.peers import prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess, own_server_command
from tests.llm import models
from tests.llm.reference import Logits, bound, nmse, stock_encoded, stock_logits
from tests.support import architectures
from tests.support.architectures import ARCHITECTURES, BOTH, ENCODER, N_VOCAB

from .conftest import need

pytestmark = pytest.mark.peer

PROMPT = [(37 * i + 11) % (N_VOCAB - 3) for i in range(40)]
BATCHES = [24, 8, *[1] * 8]
TEXT = PROMPT[::-1]
"""What encoders read."""

COMMON = ("llama", "qwen3moe", "gemma3", "phi3")
"""Architectures that our own client runs too; their models stand with its tests."""

NAMES = [*COMMON, *ARCHITECTURES]
CASES = [(name, kind) for name in NAMES for kind in ("F32", "Q8_0")]
if os.environ.get("GGML_RPC_FULL") == "1":
    # Where an indexer picks positions, the noise of coarser weights decides near ties: another position, another text.
    even = [name for name in NAMES if name not in ("deepseek32", "deepseek4")]
    CASES += [(name, kind) for name in even for kind in ("F16", "Q4_0", "Q5_1")]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Return the endpoint of our server."""
    need("stock peer 8.0", lambda: prepare_peer("8.0"))
    with ServerProcess([*own_server_command(), "--proto", "8.0"], ["-t", "2"], environment=PATIENT) as server:
        yield server.endpoint


def model(name: str, kind: str) -> tuple[Path, str]:
    """Return the file of a model, and its role."""
    if name in COMMON:
        return models.cached(models.MODELS[name], kind), architectures.DECODER
    tiny = ARCHITECTURES[name]
    return architectures.cached(tiny, kind), tiny.role


def client(path: Path, role: str) -> Callable[..., Logits]:
    """Return a function that runs the stock client, given where."""
    # An F32 cache: a rounding to F16 on the other side would hide errors below 1e-7.
    settings: dict[str, Any] = {"cache_type": "f32"}
    if role == ENCODER:
        return lambda **where: stock_encoded(path, TEXT, **settings, **where)
    if role == BOTH:
        return lambda **where: stock_encoded(path, TEXT, PROMPT, BATCHES, **settings, **where)
    return lambda **where: stock_logits(path, PROMPT, BATCHES, **settings, **where)


def compare(name: str, kind: str, endpoint: str) -> None:
    """Run the stock client on our server and on its CPU, and hold the error against the bound."""
    path, role = model(name, kind)
    run = client(path, role)
    expected, got = run(), run(servers=[endpoint])
    assert got.shape == expected.shape
    assert np.isfinite(expected).all()
    assert np.isfinite(got).all()
    error = nmse(got, expected)
    print(f"{name} {kind}: NMSE {error:.1e}")
    assert error < bound(kind)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_stock_client_gets_what_its_cpu_computes(name: str, kind: str, endpoint: str) -> None:
    compare(name, kind, endpoint)
