"""A context takes tokens in any portions, goes back, reduces logits on the device, and refuses what cannot be."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ggml_rpc.client.device import Device
from ggml_rpc.client.local import LocalBuffer, LocalDevice, local_devices
from ggml_rpc.client.remote import Server, connect
from ggml_rpc.devices import open_devices
from ggml_rpc.errors import ConnectionLost, ContextError, ModelError, OutOfMemory, ServerRefused
from ggml_rpc.llm.batch import split
from ggml_rpc.llm.context import Context
from ggml_rpc.llm.embedding import Embedding
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.ubatch_graph import Best
from ggml_rpc.llm.weights import Weights
from ggml_rpc.peers.process import PATIENT, ServerProcess, own_server_command

from .models import KINDS, MODELS, cached
from .placed import place

TOKENS = [(29 * i + 5) % 509 for i in range(400)]

Place = Callable[..., Weights]


@pytest.fixture(scope="module")
def weights_of() -> Iterator[Place]:
    """Return a function that places a random model, on one local device unless others are given."""
    opened: dict[Any, tuple[GgufFile, Weights]] = {}
    local = local_devices(threads=1)

    def get(name: str, kind: str = "F32", devices: tuple[Device, ...] = (), **options: bool) -> Weights:
        key = (name, kind, devices, *options.items())
        if key not in opened:
            file = GgufFile.open(cached(MODELS[name], kind))
            opened[key] = (file, place(file, devices or local, **options))
        return opened[key][1]

    yield get
    for file, _ in opened.values():
        file.close()


def all_rows(context: Context, tokens: list[int], portions: list[int]) -> np.ndarray:
    """Return the logits of all tokens, given in portions."""
    rows, at = [], 0
    for n in portions:
        rows.append(context.decode(tokens[at : at + n], logits="all").logits)
        at += n
    return np.concatenate(rows)  # type: ignore[arg-type]


def close(got: np.ndarray, expected: np.ndarray) -> bool:
    """Tell whether rows agree but for the rounding of kernels for one and for many rows."""
    return float(np.square(got - expected).sum() / np.square(expected).sum()) < 1e-8


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3moe"])
def test_portions_and_ubatches_do_not_matter(name: str, weights_of: Place) -> None:
    settings: dict[str, Any] = {"n_ctx": 512, "type_k": "F32", "type_v": "F32"}
    with Context(weights_of(name), n_ubatch=400, **settings) as context:
        expected = all_rows(context, TOKENS, [400])
    for n_ubatch, n_batch, portions in ((64, 512, [400]), (7, 20, [3, 397]), (100, 100, [1, 1, 298, *[1] * 100])):
        with Context(weights_of(name), n_ubatch=n_ubatch, n_batch=n_batch, **settings) as context:
            assert close(all_rows(context, TOKENS, portions), expected)
            assert context.n_past == 400


def test_wanted_rows_are_those_of_all(weights_of: Place) -> None:
    with Context(weights_of("llama"), n_ctx=512, n_ubatch=32) as context:
        rows = context.decode(TOKENS[:100], logits="all").logits
        assert rows is not None
        for wanted, expected in (("last", [99]), ([0, 31, 32, 70], [0, 31, 32, 70]), (np.array([98]), [98])):
            context.clear()
            got = context.decode(TOKENS[:100], logits=wanted).logits
            assert got is not None
            assert close(got, rows[expected])
        context.clear()
        assert context.decode(TOKENS[:60], logits=None).logits is None
        assert context.decode(TOKENS[60:100], logits=[]).logits is None
        last = context.decode([TOKENS[100]]).logits
        context.clear()
        assert close(all_rows(context, TOKENS, [101])[100:], last)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 2, 40, 511, 512, 600])
@pytest.mark.parametrize("speaks_top_k", [True, False])
def test_the_best_are_those_of_all(
    k: int, speaks_top_k: bool, weights_of: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = weights_of("gemma3-capped")
    if not speaks_top_k:
        speaks = type(weights.output_device).speaks
        monkeypatch.setattr(
            type(weights.output_device), "speaks", lambda self, op, *rest: op != "TOP_K" and speaks(self, op, *rest)
        )
    with Context(weights, n_ctx=256) as context:
        full = context.decode(TOKENS[:20], logits=[3, 19]).logits
        context.clear()
        best = context.decode(TOKENS[:20], logits=[3, 19], best=Best(k))
        context.clear()
        context.decode(TOKENS[:19], logits=None)
        step = context.decode([TOKENS[19]], best=Best(k))
    assert full is not None
    assert best.ids is not None
    n = min(k, 512)
    assert best.ids.shape == (2, n)
    order = np.argsort(-full, axis=1)[:, :n]
    if k == 1:
        assert best.logits is None
        assert np.array_equal(best.ids, order)
    else:
        assert best.logits is not None
        assert np.array_equal(best.logits, np.take_along_axis(full, best.ids, 1))
        assert np.array_equal(best.logits, np.take_along_axis(full, order, 1))
    assert step.ids is not None
    assert step.ids[0, 0] == best.ids[1, 0]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("whole_window", [True, False])
def test_going_back_forgets_what_came_after(name: str, whole_window: bool, weights_of: Place) -> None:
    with Context(weights_of(name), n_ctx=512, n_ubatch=64, whole_window=whole_window) as context:
        straight = all_rows(context, TOKENS, [150, *[1] * 10])
        assert context.cut(200) == 160
        assert context.cut(150) == 150
        other = [400, 401, 402]
        all_rows(context, other, [3])
        assert context.cut(150) == 150
        assert np.array_equal(all_rows(context, TOKENS[150:], [1] * 10), straight[150:])
        # Past 256 positions the ring of windowed layers overwrites the first.
        all_rows(context, TOKENS[160:], [200])
        left = context.cut(20)
        assert left == (0 if name == "gemma3" and not whole_window else 20)
        again = all_rows(context, TOKENS[left:], [150 - left])
        assert close(again, straight[left:150])


def test_a_token_needs_no_new_graph(weights_of: Place) -> None:
    with Context(weights_of("gemma3"), n_ctx=1024, n_ubatch=64) as context:
        context.decode(TOKENS[:10])
        context.decode([1])
        compiled = len(context._runners)
        for token in TOKENS[:200]:
            context.decode([token])
        assert len(context._runners) == compiled
        for token in TOKENS[:100]:
            context.decode([token])
        assert len(context._runners) == compiled + 1


def test_the_table_of_tokens_may_lie_on_the_device(weights_of: Place) -> None:
    rows = []
    for embedding in (False, True):
        with Context(weights_of("gemma3", "Q4_K_M", embedding=embedding), n_ctx=256) as context:
            rows.append(all_rows(context, TOKENS, [50, 1, 1]))
    assert np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_rows(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    with GgufFile.open(cached(MODELS["llama"], kind)) as file:
        table = file.tensors["token_embd.weight"]
        expected = gguf.quants.dequantize(table.data, gguf.GGMLQuantizationType[table.type]).reshape(-1, table.ne[0])
        embedding = Embedding(table, local_devices(threads=1)[0])
        for tokens in ([3], [3], [511], [3, 3, 0], [5, 511], [1, 2, 3, 4], [7] * 9, [0]):
            out = np.full((len(tokens), table.ne[0]), np.nan, np.float32)
            embedding.lookup(tokens, out)
            np.testing.assert_array_equal(out, expected[tokens])


def test_embedding_keeps_a_bounded_number_of_rows() -> None:
    with GgufFile.open(cached(MODELS["llama"], "Q4_0")) as file:
        embedding = Embedding(file.tensors["token_embd.weight"], local_devices(threads=1)[0], keep=8)
        out = np.empty((1, embedding.n_embd), np.float32)
        for token in range(50):
            embedding.lookup([token], out)
        assert len(embedding._kept) <= 8


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ([], {}, "no tokens"),
        ([512], {}, "token 512 is not in the vocabulary of 512"),
        ([3, -1], {}, "token -1 is not"),
        ([1] * 247, {}, "247 tokens after 10 do not fit into the context of 256"),
        ([1, 2], {"logits": "first"}, "not 'first'"),
        ([1, 2], {"logits": [2]}, "must rise from 0 to 1"),
        ([1, 2], {"logits": [1, 0]}, "must rise"),
    ],
)
def test_bad_tokens_change_nothing(tokens: list[int], options: dict[str, Any], message: str, weights_of: Place) -> None:
    with Context(weights_of("llama"), n_ctx=200) as context:
        context.decode(TOKENS[:10], logits=None)
        with pytest.raises(ContextError, match=message):
            context.decode(tokens, **options)
        assert context.n_past == 10
        rows = context.decode([TOKENS[10]]).logits
        context.clear()
        assert close(all_rows(context, TOKENS, [11])[10:], rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_ctx": -1}, "must be positive"),
        ({"n_ubatch": 0}, "must be positive"),
        ({"type_v": "q8_0"}, "need flash attention"),
        ({"type_k": "int4"}, "cannot be of type INT4"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, weights_of: Place) -> None:
    with pytest.raises(ContextError, match=message):
        Context(weights_of("llama"), **settings)


def test_best_of_none() -> None:
    with pytest.raises(ContextError, match="at least one"):
        Best(0)


def test_a_file_without_a_weight(weights_of: Place, tmp_path: Any) -> None:
    data = cached(MODELS["qwen3"], "F32").read_bytes().replace(b"blk.1.attn_q_norm", b"blk.1.attn_q_morn")
    (tmp_path / "broken.gguf").write_bytes(data)
    missing = pytest.raises(ModelError, match=r"no tensor 'blk.1.attn_q_norm.weight'")
    with GgufFile.open(tmp_path / "broken.gguf") as file, missing:
        place(file, local_devices(threads=1))


def test_ubatches() -> None:
    parts = split(10, 4, [0, 3, 4, 9])
    assert [(u.start, u.stop, u.rows.tolist()) for u in parts] == [(0, 4, [0, 3]), (4, 8, [0]), (8, 10, [1])]
    assert [u.rows.tolist() for u in split(5, 3, None)] == [[], []]
    assert [u.rows.tolist() for u in split(5, 3, "last")] == [[], [1]]


@pytest.fixture
def servers() -> Iterator[tuple[list[ServerProcess], list[Server]]]:
    """Run two servers and connect to them."""
    command = [*own_server_command(), "--proto", "8.0"]
    with (
        ServerProcess(command, ["-t", "1"], environment=PATIENT) as a,
        ServerProcess(command, ["-t", "1"], environment=PATIENT) as b,
        connect(a.endpoint) as first,
        connect(b.endpoint) as second,
    ):
        yield [a, b], [first, second]


@pytest.mark.parametrize("dead", [0, 1])
@pytest.mark.parametrize("n_tokens", [1, 300])
def test_a_lost_server_is_an_error_and_positions_stay(
    dead: int, n_tokens: int, servers: tuple[list[ServerProcess], list[Server]], weights_of: Place
) -> None:
    processes, connections = servers
    weights = weights_of("llama", "F32", tuple(s.devices[0] for s in connections))
    with Context(weights, n_ctx=512, n_ubatch=16) as context:
        context.decode(TOKENS[:20])
        os.kill(processes[dead].pid, signal.SIGKILL)
        with pytest.raises((ConnectionLost, ServerRefused), match=connections[dead].endpoint):
            context.decode(TOKENS[20 : 20 + n_tokens])
        assert context.n_past == 20


class Narrow(LocalDevice):
    """A device that refuses memory after some buffers, and knows which it gave."""

    def __init__(self, given: int) -> None:
        super().__init__(open_devices(["CPU"], threads=1)[0])
        self._left = given
        self.buffers: list[LocalBuffer] = []

    def allocate(self, size: int) -> LocalBuffer:
        if not self._left:
            raise OutOfMemory(f"{self}: no more")
        self._left -= 1
        self.buffers.append(super().allocate(size))
        return self.buffers[-1]


# The second device has one buffer of weights, then gives none for the cache, or for intermediate results.
@pytest.mark.parametrize(("given", "settings"), [(1, {}), (2, {}), (2, {"type_k": "Q8_0", "flash_attn": True})])
def test_what_a_failed_context_held_is_free_while_its_error_is_kept(given: int, settings: dict[str, Any]) -> None:
    first, second = Narrow(1000), Narrow(given)
    with GgufFile.open(cached(MODELS["llama"], "F32")) as file:
        weights = place(file, [first, second])
        held = len(first.buffers)
        with pytest.raises(OutOfMemory) as kept:
            Context(weights, n_ctx=256, **settings)
        assert len(first.buffers) > held
        assert all(buffer.is_free for buffer in first.buffers[held:] + second.buffers[1:])
        assert not any(buffer.is_free for buffer in first.buffers[:held])
        assert kept.value.__traceback__ is not None


def test_closed_contexts_and_odd_wishes_are_refused(weights_of: Place) -> None:
    context = Context(weights_of("llama"), n_ctx=256)
    for wanted in ("lst", [5], [-1]):
        with pytest.raises(ContextError, match="wanted"):
            context.decode([1], logits=wanted)  # type: ignore[arg-type]
    assert context.decode([1], logits=[0]).logits is not None
    context.close()
    with pytest.raises(ValueError, match="the context was closed"):
        context.decode([1])
