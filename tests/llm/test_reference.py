"""The random models are sound, their reference tells differences apart, and our server agrees with it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.peers import prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess, own_server_command
from tests.e2e.conftest import need

from . import reference
from .models import KINDS, MODELS, cached, write
from .reference import BATCHES, PROMPT, StockError, bound, nmse, stock_logits

pytestmark = pytest.mark.peer

# One of each shape of graph gets the families of types, two of them every type; F32 shows best what variants are about.
SHAPES = ("llama", "llama-moe", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3")
FAMILIES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M", "Q6_K")
CASES = [(name, "F32") for name in MODELS]
CASES += [(name, kind) for name in SHAPES for kind in (KINDS[1:] if name.startswith("llama") else FAMILIES)]

# Keys that change nothing: stock ignores Phi 3's window; 4096 positions and a linear scale are the default. Without the
# last two, tensors have no use or no shape, and stock refuses the file.
SILENT = {
    ("phi3", "attention.sliding_window"),
    ("phi3-short", "attention.sliding_window"),
    ("phi3-long", "attention.sliding_window"),
    ("phi3-short", "rope.scaling.original_context_length"),
    ("llama-longrope", "rope.scaling.original_context_length"),
    ("llama-linear", "rope.scaling.type"),
    ("gemma3-linear", "rope.scaling.type"),
    ("llama-longrope", "rope.scaling.type"),
    ("qwen3moe", "expert_feed_forward_length"),
}
KEYS = [(model.name, key) for model in MODELS.values() for key in model.metadata if (model.name, key) not in SILENT]


@pytest.fixture(scope="module", autouse=True)
def _peer() -> None:
    need("stock peer 8.0", lambda: prepare_peer("8.0"))


@pytest.fixture(scope="module")
def our_server() -> Iterator[str]:
    """Run our server and return its endpoint."""
    with ServerProcess([*own_server_command(), "--proto", "8.0"], ["-t", "2"], environment=PATIENT) as server:
        yield server.endpoint


@pytest.mark.parametrize("name", MODELS)
def test_stock_runs_the_model_with_sane_logits(name: str) -> None:
    model = MODELS[name]
    logits = stock_logits(cached(model, "F32"), PROMPT, BATCHES)
    assert logits.shape == (len(PROMPT), model.n_vocab)
    assert np.isfinite(logits).all()
    assert 1.0 < logits.std(axis=1).mean() < 3.0
    # Positions matter: equal tokens at two places must not give equal rows.
    again = stock_logits(cached(model, "F32"), [*PROMPT[:50], *PROMPT[:50]])
    assert nmse(again[50:], again[:50]) > 1e-3


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_our_server_agrees_with_stock(name: str, kind: str, our_server: str) -> None:
    path = cached(MODELS[name], kind)
    expected = stock_logits(path, PROMPT, BATCHES)
    error = nmse(stock_logits(path, PROMPT, BATCHES, servers=[our_server]), expected)
    print(f"{name} {kind}: NMSE {error:.1e}")
    assert error < bound(kind)


@pytest.mark.parametrize("name", SHAPES)
def test_our_server_agrees_sharply_with_f32_throughout(name: str, our_server: str) -> None:
    path = cached(MODELS[name], "F32")
    expected = stock_logits(path, PROMPT, BATCHES, cache_type="f32")
    error = nmse(stock_logits(path, PROMPT, BATCHES, cache_type="f32", servers=[our_server]), expected)
    # Stock looks GELU up in a table of F16 values: 4e-8 on these.
    assert error < (2e-7 if "gemma" in name else 1e-10)


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", SHAPES)
def test_our_server_agrees_with_flash_attention(name: str, cache_type: str, our_server: str) -> None:
    path = cached(MODELS[name], "F32")
    expected = stock_logits(path, PROMPT, BATCHES, flash="on", cache_type=cache_type)
    got = stock_logits(path, PROMPT, BATCHES, flash="on", cache_type=cache_type, servers=[our_server])
    assert nmse(got, expected) < {"f16": 5e-6, "bf16": 5e-5, "q8_0": 5e-4}[cache_type]


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_every_key_shows_in_the_logits(name: str, key: str, tmp_path: Path) -> None:
    model = MODELS[name]
    without = replace(model, metadata={k: v for k, v in model.metadata.items() if k != key})
    write(tmp_path / "without.gguf", without, "F32")
    expected = stock_logits(cached(model, "F32"), PROMPT, BATCHES)
    error = nmse(stock_logits(tmp_path / "without.gguf", PROMPT, BATCHES), expected)
    assert error > 100 * bound("F32"), "an engine that ignores the key would pass"


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "qwen2-tied", "gemma2-wide-heads"])
def test_vocabularies_take_text(name: str, tmp_path: Path) -> None:
    text = "The books fill a shelf in the harbour office"
    (tmp_path / "text").write_text(text)
    peer = prepare_peer("8.0")
    command = ["tokenize", "--model", str(cached(MODELS[name], "F32")), "--text", str(tmp_path / "text")]
    done = subprocess.run(peer.driver_command(command), check=True, capture_output=True, text=True)
    ids = json.loads(done.stdout.splitlines()[0])["ids"]
    assert 0 < len(ids) < 0.75 * len(text), "nothing was merged"
    assert max(ids) < MODELS[name].n_vocab


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_as_named(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write(tmp_path / "model.gguf", MODELS["llama"], kind)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.attn_q.weight"] == ("Q4_K" if kind == "Q4_K_M" else kind)
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_references_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached(MODELS["llama"], "F32")
    monkeypatch.setattr(reference, "cache_dir", lambda: tmp_path)
    first = stock_logits(path, PROMPT[:5])

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("started again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert np.array_equal(stock_logits(path, PROMPT[:5]), first)
    for other in ({"batches": [2, 3]}, {"flash": "on"}, {"cache_type": "f32"}, {"every": False}, {"n_ctx": 256}):
        with pytest.raises(AssertionError, match="started again"):
            stock_logits(path, PROMPT[:5], **other)


def test_a_broken_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(cached(MODELS["llama"], "F32").read_bytes()[:100000])
    with pytest.raises(StockError, match=r"cannot load .*broken\.gguf"):
        stock_logits(path, PROMPT[:5])


def test_wrong_position_is_seen() -> None:
    """The measure sees one row out of a hundred that belongs to another position."""
    right = stock_logits(cached(MODELS["llama"], "F32"), PROMPT, BATCHES)
    wrong = right.copy()
    wrong[50] = right[51]
    assert nmse(wrong, right) > 10 * bound("Q4_K_M")
