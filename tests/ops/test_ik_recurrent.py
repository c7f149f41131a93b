"""The recurrent ops that ik_llama.cpp has in a form of its own, against their definitions in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec import dialects
from tests.ops.conftest import device
from tests.ops.test_recurrent import apart, delta_oracle, normal, parts, softplus, untouched, word
from tests.ops.tolerances import check
from tests.support.device import Bench
from tests.support.wiretensor import Tensor


@pytest.fixture
def bench(level: str) -> Bench:
    return Bench(device(level), dialect=dialects.find("ik-3.5.2"))


def one_sequence(tokens: int) -> np.ndarray:
    return np.zeros((tokens, 1), np.int32)


# Four tokens of three sequences: the first goes on in the third too, the last token's state is copied to both others.
# What follows an illegal entry is not looked at.
SHARED = np.array([[0, 2, -1], [1, 7, 0], [0, -5, 2], [1, 0, 2]], np.int32)
MAPS = [one_sequence(1), one_sequence(40), SHARED, np.array([[4, 4, 4, 4, 3]], np.int32)]


Token = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]


def follow(states: np.ndarray, rows: np.ndarray, token: Token) -> np.ndarray:
    """Apply `token(t, state)` -> (values, new state) along a map; return the values; `states` [seq, ...] in place."""
    values = []
    for t, row in enumerate(rows):
        value, states[row[0]] = token(t, states[row[0]])
        values.append(value)
        for copy in row[1:]:
            if not 0 <= copy < len(states):
                break
            states[copy] = states[row[0]]
    return np.array(values)


# ---- IK_SSM_CONV ----


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def conv(bench: Bench, arrays: Arrays, rows: np.ndarray, store: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return values [token, channel] and windows [seq, channel, tap] for x, state and kernel."""
    x, state, kernel = arrays
    (tokens, channels), (sequences, _, _), taps = x.shape, state.shape, kernel.shape[1]
    padded = np.full((tokens, channels + 5), np.nan, np.float32)
    padded[:, :channels] = x
    base = bench.put(padded)
    narrow = bench.view(base, "F32", x.shape, (base.nb[1], 4))
    node = bench.node(
        "IK_SSM_CONV",
        "F32",
        (tokens * channels + sequences * channels * taps,),
        [bench.put(state), narrow, bench.put(kernel), bench.put(rows, name="map"), *([store] if store else [])],
    )
    bench.run(node)
    values, windows = parts(bench, node, (tokens, channels), (sequences, channels, taps))
    return values, windows


@pytest.mark.parametrize("rows", MAPS, ids=["one", "forty", "shared", "last"])
@pytest.mark.parametrize("channels", [1, 15, 33, 64])
@pytest.mark.parametrize("taps", [2, 4, 70])
def test_conv(bench: Bench, rng: np.random.Generator, rows: np.ndarray, channels: int, taps: int) -> None:
    x, kernel = normal(rng, len(rows), channels), normal(rng, channels, taps)
    state = normal(rng, rows.shape[1], channels, taps - 1)
    values, windows = conv(bench, (x, state, kernel), rows)
    states = state.astype(np.float64)

    def token(t: int, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        window = np.concatenate([past, x[t][:, None]], axis=1)
        return (window * kernel).sum(1), window[:, 1:]

    check(values, follow(states, rows, token), "f32")
    check(windows[:, :, 1:], states, "exact")


@pytest.mark.parametrize("channels", [15, 32])
def test_conv_stores_states(bench: Bench, rng: np.random.Generator, channels: int) -> None:
    """Each token's state is written to a source."""
    tokens, taps = 6, 4
    x, state, kernel = normal(rng, tokens, channels), normal(rng, 1, channels, taps - 1), normal(rng, channels, taps)
    store = bench.place("F32", (tokens * channels * (taps - 1) + 9,))
    conv(bench, (x, state, kernel), one_sequence(tokens), store)
    line = np.concatenate([state[0], x.T], axis=1)
    expected = [line[:, t + 1 : t + taps] for t in range(tokens)]
    got = bench.read(store).reshape(-1)
    np.testing.assert_array_equal(got[:-9].reshape(tokens, channels, taps - 1), expected)
    assert untouched(got[-9:])


@pytest.mark.parametrize(("sequences", "bad"), [(1, 1), (1, -1), (3, 3), (3, -(2**31))])
def test_conv_bad_sequence(bench: Bench, rng: np.random.Generator, sequences: int, bad: int) -> None:
    rows = np.zeros((5, sequences), np.int32)
    rows[3, 0] = bad
    with pytest.raises(RpcError, match=rf"index {bad} in 'map' is out of range \(0 .. {sequences - 1}\)"):
        conv(bench, (normal(rng, 5, 20), normal(rng, sequences, 20, 3), normal(rng, 20, 4)), rows)


# ---- IK_SSM_SCAN ----


def scan(bench: Bench, rng: np.random.Generator, rows: np.ndarray, channels: int, size: int) -> None:
    tokens, sequences = rows.shape
    state, x, dt = normal(rng, sequences, channels, size), normal(rng, tokens, channels), normal(rng, tokens, channels)
    a, b, c = -np.exp(normal(rng, channels, size)), normal(rng, tokens, size), normal(rng, tokens, size)
    dt[0, 0] = 30
    sources = [bench.put(m) for m in (state, x, dt, a, b, c)]
    node = bench.node("IK_SSM_SCAN", "F32", (x.size + state.size,), [*sources, bench.put(rows, name="map")])
    bench.run(node)
    values, final = parts(bench, node, x.shape, state.shape)
    states = state.astype(np.float64)

    def token(t: int, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step = softplus(dt[t])[:, None]
        s = s * np.exp(step * a) + b[t] * (x[t][:, None] * step)
        return s @ c[t].astype(np.float64), s

    check(values, follow(states, rows, token), "f32")
    check(final, states, "f32")


@pytest.mark.parametrize("rows", MAPS, ids=["one", "forty", "shared", "last"])
@pytest.mark.parametrize(("channels", "size"), [(1, 1), (33, 16), (15, 7), (64, 33), (5, 24), (3, 100), (3, 200)])
def test_scan(bench: Bench, rng: np.random.Generator, rows: np.ndarray, channels: int, size: int) -> None:
    scan(bench, rng, rows, channels, size)


@pytest.mark.parametrize(("sequences", "bad"), [(1, 1), (3, -1), (3, 3)])
def test_scan_bad_sequence(bench: Bench, rng: np.random.Generator, sequences: int, bad: int) -> None:
    rows = np.zeros((5, sequences), np.int32)
    rows[2, 0] = bad
    with pytest.raises(RpcError, match=rf"index {bad} in 'map' is out of range \(0 .. {sequences - 1}\)"):
        scan(bench, rng, rows, 20, 16)


# ---- DELTA_NET ----


@pytest.mark.parametrize("n", [1, 15, 33, 64, 128, 200])
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("form", [(0, 1, False), (1, 6, False), (0, 4, True), (1, 2, True)])
def test_delta_net(
    bench: Bench, rng: np.random.Generator, n: int, by_channel: bool, form: tuple[int, int, bool]
) -> None:
    repeat, tokens, stored = form
    seqs, heads, key_heads = 2, 4, 2
    q, k = normal(rng, seqs, key_heads, tokens, n), normal(rng, seqs, key_heads, tokens, n)
    q, k = (m / np.linalg.norm(m, axis=-1, keepdims=True).astype(np.float32) for m in (q, k))
    v = normal(rng, seqs, tokens, heads, n)
    g = -np.abs(normal(rng, seqs, tokens, heads, n if by_channel else 1))
    beta, state = normal(rng, seqs, tokens, heads, 1), normal(rng, seqs, heads, n, n)  # state [.., k, v]
    store = bench.place("F32", ((tokens - 1) * state.size + 5,)) if stored else None
    sources = [
        bench.put(q),
        bench.put(k),
        bench.permute(apart(bench, v), (0, 2, 1, 3)),
        bench.permute(bench.put(g), (2, 0, 1, 3)),
        bench.permute(bench.put(beta), (0, 2, 1, 3)),
        bench.put(state.reshape(seqs, 1, heads * n, n)),
    ]
    # ggml axes of g are [channel, head, token, seq]; the op takes [token, channel, head, seq].
    node = bench.node("DELTA_NET", "F32", (v.size + state.size,), [*sources, *([store] if store else [])], word(repeat))
    bench.run(node)
    out, final = parts(bench, node, v.shape, state.shape)

    heads_of = [0, 1, 0, 1] if repeat else [0, 0, 1, 1]
    q, k = (m[:, heads_of].transpose(0, 2, 1, 3) for m in (q, k))
    gate = 1 / (1 + np.exp(-beta.astype(np.float64)))
    expected, history = delta_oracle((q, k, v), np.exp(g.astype(np.float64)), gate, state.transpose(0, 1, 3, 2))
    check(out, expected, "f32")
    check(final, history[-1].transpose(0, 1, 3, 2), "f32")
    if store:
        kept = bench.read(store).reshape(-1)
        for t, s in enumerate(history[:-1]):
            part = kept[t * state.size : (t + 1) * state.size].reshape(state.shape)
            check(part, s.transpose(0, 1, 3, 2), "f32")
        assert untouched(kept[-5:])


def test_delta_net_limits(bench: Bench) -> None:
    """A gate above 50 counts as 50, and no element of the state passes a million."""
    n = 16
    zeros = np.zeros((1, 1, 1, n), np.float32)
    state = np.zeros((1, 1, n, n), np.float32)
    state[0, 0, 0] = np.array([1e-30] * 8 + [1.0] * 4 + [-1.0] * 4)
    gate = np.full((1, 1, 1, 1), 80, np.float32)
    sources = [bench.put(m) for m in (zeros, zeros, zeros, gate, np.zeros((1, 1, 1, 1), np.float32), state)]
    node = bench.node("DELTA_NET", "F32", (n + n * n,), sources, word(0))
    bench.run(node)
    _, final = parts(bench, node, (n,), (n, n))
    check(final[0], np.array([1e-30 * np.exp(50.0)] * 8 + [1e6] * 4 + [-1e6] * 4), "f32")
    assert not final[1:].any()
