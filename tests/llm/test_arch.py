"""Logits of our own graphs agree with stock llama.cpp's, for every architecture, type and kind of attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggml_rpc.client.device import Device
from ggml_rpc.client.local import local_devices
from ggml_rpc.llm.context import Context
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.peers import prepare_peer
from tests.e2e.conftest import need

from .models import KINDS, MODELS, cached
from .placed import place
from .reference import BATCHES, PROMPT, Logits, bound, nmse, stock_logits

pytestmark = pytest.mark.peer

SHAPES = ("llama", "llama-moe", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3")
CASES = [(name, "F32") for name in MODELS] + [(name, kind) for name in SHAPES for kind in KINDS[1:]]
LONG = [(53 * i + 7) % 509 for i in range(330)]
"""More than the 256 cells of a ring for windows of 16."""


@pytest.fixture(scope="module", autouse=True)
def _peer() -> None:
    need("stock peer 8.0", lambda: prepare_peer("8.0"))


@pytest.fixture(scope="module")
def local() -> Device:
    """Return the CPU of this machine."""
    return local_devices(threads=2)[0]


def run(
    path: Path, devices: Sequence[Device], tokens: Sequence[int], batches: Sequence[int], **settings: Any
) -> Logits:
    """Return a row of logits for each token."""
    embedding = settings.pop("embedding", False)
    with GgufFile.open(path) as file:
        weights = place(file, devices, embedding=embedding)
        with Context(weights, n_ctx=512, **settings) as context:
            ends = np.cumsum(batches)
            rows = [
                context.decode(tokens[end - n : end], logits="all").logits for end, n in zip(ends, batches, strict=True)
            ]
    found = [row for row in rows if row is not None]
    return np.concatenate(found)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_agrees_with_stock(name: str, kind: str, local: Device) -> None:
    path = cached(MODELS[name], kind)
    error = nmse(run(path, [local], PROMPT, BATCHES), stock_logits(path, PROMPT, BATCHES))
    print(f"{name} {kind}: NMSE {error:.1e}")
    assert error < bound(kind)


@pytest.mark.parametrize("name", SHAPES)
def test_agrees_sharply_with_f32_throughout(name: str, local: Device) -> None:
    path = cached(MODELS[name], "F32")
    got = run(path, [local], PROMPT, BATCHES, type_k="F32", type_v="F32")
    # Stock looks GELU up in a table of F16 values: 4e-8 on these.
    assert nmse(got, stock_logits(path, PROMPT, BATCHES, cache_type="f32")) < (2e-7 if "gemma" in name else 1e-10)


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", [*SHAPES, "llama-mistral", "gemma2-wide-heads"])  # heads of 64 are rotated
def test_agrees_with_flash_attention(name: str, cache_type: str, local: Device) -> None:
    path = cached(MODELS[name], "F32")
    got = run(path, [local], PROMPT, BATCHES, flash_attn=True, type_k=cache_type, type_v=cache_type)
    error = nmse(got, stock_logits(path, PROMPT, BATCHES, flash="on", cache_type=cache_type))
    print(f"{name} {cache_type}: NMSE {error:.1e}")
    assert error < {"f16": 5e-6, "bf16": 5e-5, "q8_0": 5e-4, "q4_0": 5e-3}[cache_type]


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("whole_window", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gemma3-capped"])
def test_windows_over_many_ubatches(name: str, whole_window: bool, flash: bool, local: Device) -> None:
    """A prompt that a ring of cells cannot hold, in ubatches that are cut anywhere, then single tokens."""
    path = cached(MODELS[name], "F32")
    batches = [1, 7, 292, *[1] * 30]
    got = run(path, [local], LONG, batches, n_ubatch=64, whole_window=whole_window, flash_attn=flash)
    expected = stock_logits(path, LONG, [1, 7, 292, *[1] * 30], flash="on" if flash else "off")
    assert nmse(got, expected) < (5e-6 if flash else 1e-6)
