"""Recurrent layers, linear attention and triangular systems against their definitions in float64, token by token."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from ggml_rpc.errors import RpcError
from ggml_rpc.spec.enums import TriKind
from tests.ops.tolerances import check
from tests.support.device import POISON, Bench
from tests.support.wiretensor import Tensor


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x.astype(np.float64))


def word(value: float) -> bytes:
    return struct.pack("<f" if isinstance(value, float) else "<i", value)


def parts(bench: Bench, node: Tensor, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Cut a result that holds several tensors one after the other."""
    flat = bench.read(node).reshape(-1)
    out, at = [], 0
    for shape in shapes:
        n = int(np.prod(shape))
        out.append(flat[at : at + n].reshape(shape))
        at += n
    assert at == flat.size
    return out


def apart(bench: Bench, x: np.ndarray, gap: int = 3) -> Tensor:
    """Place x [..., tokens, heads, n] as a part of wider tokens, as q, k and v lie in one projection."""
    wide = np.full((*x.shape[:-2], x.shape[-2] + gap, x.shape[-1]), np.nan, np.float32)
    wide[..., : x.shape[-2], :] = x
    base = bench.put(wide)
    return bench.view(base, "F32", x.shape, [base.nb[3], base.nb[2], base.nb[1], base.nb[0]][-x.ndim :])


def untouched(x: np.ndarray) -> bool:
    return bool((np.ascontiguousarray(x).view(np.uint8) == POISON).all())


# ---- SSM_CONV ----


@pytest.mark.parametrize("taps", [1, 2, 4, 9])
@pytest.mark.parametrize(("channels", "tokens"), [(1, 1), (15, 1), (33, 5), (17, 33), (97, 150)])
def test_ssm_conv(bench: Bench, rng: np.random.Generator, taps: int, channels: int, tokens: int) -> None:
    x, kernel = normal(rng, 3, channels, tokens + taps - 1), normal(rng, channels, taps)
    node = bench.node("SSM_CONV", "F32", (3, tokens, channels), [bench.put(x), bench.put(kernel)])
    bench.run(node)
    expected = np.zeros((3, tokens, channels))
    for i in range(taps):
        expected += (x[:, :, i : i + tokens].astype(np.float64) * kernel[:, i, None]).transpose(0, 2, 1)
    check(bench.read(node)[0], expected, "f32")


def test_ssm_conv_of_sequences_apart(bench: Bench, rng: np.random.Generator) -> None:
    x, kernel = normal(rng, 4, 20, 9), normal(rng, 20, 4)
    base = bench.put(x)
    every_other = bench.view(base, "F32", (2, 20, 9), (2 * 720, 36, 4))
    node = bench.node("SSM_CONV", "F32", (2, 6, 20), [every_other, bench.put(kernel)])
    bench.run(node)
    windows = np.lib.stride_tricks.sliding_window_view(x[::2].astype(np.float64), 4, axis=-1)
    check(bench.read(node)[0], np.einsum("sctk,ck->stc", windows, kernel.astype(np.float64)), "f32")


# ---- SSM_SCAN ----


def scan(bench: Bench, rng: np.random.Generator, size: int, dim: int, heads: int, **options: int) -> None:
    """Run a scan of 7 tokens of 2 sequences whose states are the third and the first of three."""
    tokens, groups, kept = options.get("tokens", 7), options.get("groups", 1), options.get("kept", 1)
    decays = size if options.get("by_element") else 1
    state, x = normal(rng, 3, heads, dim, size), normal(rng, 2, tokens, heads, dim)
    dt = normal(rng, 2, tokens, heads) * 8
    a = -np.exp(normal(rng, heads, decays))
    b, c = normal(rng, 2, tokens, groups, size), normal(rng, 2, tokens, groups, size)
    ids = np.array([2, 0], np.int32)
    sources = [bench.put(state), apart(bench, x), bench.put(dt), bench.put(a), apart(bench, b), apart(bench, c)]
    n_states = max(kept, 1)
    count = x.size + n_states * 2 * heads * dim * size
    node = bench.node("SSM_SCAN", "F32", (count,), [*sources, bench.put(ids)], word(kept))
    bench.run(node)
    y, states = parts(bench, node, x.shape, (n_states, 2, heads, dim, size))

    s = state[ids].astype(np.float64)
    expected, history = np.empty(x.shape), []
    for t in range(tokens):
        step = softplus(dt[:, t])
        decay = np.exp(step[..., None] * a)[:, :, None, :]
        bt, ct = (np.repeat(m[:, t].astype(np.float64), heads // groups, axis=1)[:, :, None, :] for m in (b, c))
        s = s * decay + bt * (x[:, t] * step[..., None])[..., None]
        expected[:, t] = (s * ct).sum(-1)
        history.append(s)
    check(y, expected, "f32")
    for slot in range(n_states):
        if slot < tokens:
            check(states[slot], history[-1 - slot], "f32")
        else:
            assert untouched(states[slot])


@pytest.mark.parametrize("size", [1, 15, 16, 30, 64, 97, 128, 200])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 6, 3), (64, 2, 1), (33, 4, 4)])
def test_mamba_2(bench: Bench, rng: np.random.Generator, size: int, shape: tuple[int, int, int]) -> None:
    dim, heads, groups = shape
    scan(bench, rng, size, dim, heads, groups=groups)


@pytest.mark.parametrize("size", [7, 16, 24, 33, 100, 200])
@pytest.mark.parametrize(("dim", "heads"), [(1, 1), (1, 50), (3, 20)])
def test_mamba(bench: Bench, rng: np.random.Generator, size: int, dim: int, heads: int) -> None:
    scan(bench, rng, size, dim, heads, by_element=True)


@pytest.mark.parametrize(("kept", "tokens"), [(0, 3), (2, 5), (4, 4), (4, 2), (3, 1)])
def test_scan_keeps_states(bench: Bench, rng: np.random.Generator, kept: int, tokens: int) -> None:
    """The states after the latest tokens are kept; 0 from older clients means the last."""
    scan(bench, rng, 16, 5, 6, kept=kept, tokens=tokens)


@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_scan_bad_state(bench: Bench, bad: int) -> None:
    shapes = [(3, 4, 8, 16), (2, 5, 4, 8), (2, 5, 4), (4, 1), (2, 5, 1, 16), (2, 5, 1, 16)]
    sources = [bench.put(np.zeros(shape, np.float32)) for shape in shapes]
    ids = bench.put(np.array([1, bad], np.int32), name="ids")
    count = 2 * 5 * 4 * 8 + 2 * 4 * 8 * 16
    with pytest.raises(RpcError, match=rf"index {bad} in 'ids' is out of range \(0 .. 2\)"):
        bench.run(bench.node("SSM_SCAN", "F32", (count,), [*sources, ids], word(1)))


# ---- GATED_DELTA_NET ----


def delta_oracle(
    qkv: tuple[np.ndarray, np.ndarray, np.ndarray], decay: np.ndarray, beta: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the answers [seq, token, head, n] and the states [seq, head, v, k] after each token.

    Inputs are [seq, token, head, n] with heads repeated already; `decay` has 1 or n channels, `beta` one.
    """
    shape = qkv[2].shape
    s, out, states = state.astype(np.float64), np.empty(shape), []
    for t in range(shape[1]):
        qt, kt, vt = (m[:, t].astype(np.float64) for m in qkv)
        s = s * decay[:, t, :, None, :]
        delta = (vt - np.einsum("shvk,shk->shv", s, kt)) * beta[:, t]
        s = s + delta[..., None] * kt[:, :, None, :]
        out[:, t] = np.einsum("shvk,shk->shv", s, qt) / np.sqrt(shape[-1])
        states.append(s)
    return out, states


@pytest.mark.parametrize("n", [1, 15, 33, 64, 128, 200])
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("times", [(0, 1), (1, 6), (3, 5), (4, 2)])
def test_gated_delta_net(
    bench: Bench, rng: np.random.Generator, n: int, by_channel: bool, times: tuple[int, int]
) -> None:
    kept, tokens = times
    seqs, heads, key_heads = 2, 4, 2
    q, v = normal(rng, seqs, tokens, key_heads, n), normal(rng, seqs, tokens, heads, n)
    k = normal(rng, 1, tokens, 1, n)
    q, k = (m / np.linalg.norm(m, axis=-1, keepdims=True).astype(np.float32) for m in (q, k))
    g = -np.abs(normal(rng, seqs, tokens, heads, n if by_channel else 1))
    beta, state = rng.random((seqs, tokens, heads, 1), np.float32), normal(rng, seqs, heads, n, n)
    n_states = max(kept, 1)
    # Clients from before snapshots may flatten the state.
    placed = bench.put(state if kept else state.reshape(seqs, -1))
    node = bench.node(
        "GATED_DELTA_NET",
        "F32",
        (tokens * seqs + n_states * n * seqs, n * heads),
        [apart(bench, q), apart(bench, k), apart(bench, v), bench.put(g), bench.put(beta), placed],
        word(kept),
    )
    bench.run(node)
    out, states = parts(bench, node, v.shape, (n_states, *state.shape))
    # Key heads follow each other again and again.
    q, k = np.tile(q, (1, 1, 2, 1)), np.tile(k, (2, 1, 4, 1))
    expected, history = delta_oracle((q, k, v), np.exp(g.astype(np.float64)), beta.astype(np.float64), state)
    check(out, expected, "f32")
    for slot in range(n_states):
        if slot < tokens:
            check(states[slot], history[-1 - slot], "f32")
        else:
            assert untouched(states[slot])


# ---- RWKV and gated linear attention ----


@pytest.mark.parametrize("n", [1, 15, 33, 64, 97, 200])
@pytest.mark.parametrize("times", [(1, 1), (1, 9), (3, 4)])
@pytest.mark.parametrize("op", ["RWKV_WKV6", "RWKV_WKV7", "GATED_LINEAR_ATTN"])
def test_linear_attention(bench: Bench, rng: np.random.Generator, op: str, n: int, times: tuple[int, int]) -> None:
    seqs, tokens = times
    heads, scale = 3, 0.25
    inputs = [normal(rng, seqs * tokens, heads, n) for _ in range({"RWKV_WKV6": 5, "RWKV_WKV7": 6}.get(op, 4))]
    if op == "RWKV_WKV6":
        inputs[3] = normal(rng, heads, n)
    decay_slot = {"RWKV_WKV6": 4, "RWKV_WKV7": 1}.get(op, 3)
    inputs[decay_slot] = rng.random((seqs * tokens, heads, n), np.float32)
    if op == "RWKV_WKV7":
        inputs[4], inputs[5] = (m / np.float32(np.sqrt(n)) for m in inputs[4:])
    state = normal(rng, seqs, heads, n, n)
    node = bench.node(
        op,
        "F32",
        (seqs * tokens + seqs * n, heads * n),
        [*(bench.put(m) for m in inputs), bench.put(state.reshape(seqs, -1))],
        word(scale) if op == "GATED_LINEAR_ATTN" else b"",
    )
    bench.run(node)
    out, final = parts(bench, node, (seqs, tokens, heads, n), state.shape)

    wide = [m.astype(np.float64) for m in inputs]
    wide = [m if m.ndim == 2 else m.reshape(seqs, tokens, heads, n) for m in wide]
    s, expected = state.astype(np.float64), np.empty(out.shape)
    for t in range(tokens):
        now = [m if m.ndim == 2 else m[:, t] for m in wide]
        if op == "RWKV_WKV7":
            r, w, k, v, a, b = now
            answer = np.einsum("shvk,shk->shv", s, a)
            s = s * w[:, :, None, :] + v[..., None] * k[:, :, None, :] + answer[..., None] * b[:, :, None, :]
            expected[:, t] = np.einsum("shvk,shk->shv", s, r)
        elif op == "RWKV_WKV6":
            k, v, r, first, decay = now
            kv = k[..., None] * v[:, :, None, :]
            expected[:, t] = np.einsum("shkv,shk->shv", s + kv * first[None, :, :, None], r)
            s = s * decay[..., None] + kv
        else:
            k, v, q, gate = now
            s = s * gate[..., None] + k[..., None] * v[:, :, None, :]
            expected[:, t] = np.einsum("shkv,shk->shv", s, q) * scale
    check(out, expected, "f32")
    check(final, s, "f32")


# ---- Triangles ----


@pytest.mark.parametrize("n", [1, 2, 15, 64])
@pytest.mark.parametrize("width", [1, 17, 33, 97])
@pytest.mark.parametrize("in_place", [False, True])
def test_solve_tri(bench: Bench, rng: np.random.Generator, n: int, width: int, in_place: bool) -> None:
    a = np.tril(normal(rng, 2, 3, n, n) / np.float32(n), -1) + np.eye(n, dtype=np.float32) * 2
    b = normal(rng, 2, 3, n, width)
    above = np.triu(np.full((n, n), np.nan, np.float32), 1)  # never read
    t = bench.put(b)
    node = bench.node("SOLVE_TRI", "F32", b.shape, [bench.put(a + above), t], out=t if in_place else None)
    bench.run(node)
    check(bench.read(node), np.linalg.solve(a.astype(np.float64), b.astype(np.float64)), "f32")


@pytest.mark.parametrize("kind", TriKind)
@pytest.mark.parametrize("n", [1, 17, 40])
@pytest.mark.parametrize("in_place", [False, True])
def test_tri(bench: Bench, rng: np.random.Generator, kind: TriKind, n: int, in_place: bool) -> None:
    x = normal(rng, 2, 3, n, n)
    t = bench.put(x)
    node = bench.node("TRI", "F32", x.shape, [t], word(int(kind)), out=t if in_place else None)
    bench.run(node)
    keep = {
        TriKind.LOWER: np.tril(x, -1),
        TriKind.LOWER_DIAG: np.tril(x),
        TriKind.UPPER: np.triu(x, 1),
        TriKind.UPPER_DIAG: np.triu(x),
    }
    np.testing.assert_array_equal(bench.read(node), keep[kind])


@pytest.mark.parametrize("n", [1, 33])
def test_diag(bench: Bench, rng: np.random.Generator, n: int) -> None:
    x = normal(rng, 2, 3, 1, n)
    node = bench.node("DIAG", "F32", (2, 3, n, n), [bench.put(x)])
    bench.run(node)
    np.testing.assert_array_equal(bench.read(node), x * np.eye(n, dtype=np.float32))
