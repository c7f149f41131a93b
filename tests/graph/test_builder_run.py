"""Built graphs, run on the CPU device, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from ggml_rpc.devices import open_devices
from ggml_rpc.devices._device import NativeDevice
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._tensor import Place, Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import RopeMode

DTYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}
NAMES = {np.dtype(d): name for name, d in DTYPES.items()}


@cache
def device() -> NativeDevice:
    (cpu,) = open_devices(["CPU"], threads=2)
    return cpu


class Run:
    """A graph whose leaves come from arrays."""

    def __init__(self) -> None:
        self.g = Graph()
        self.data: list[tuple[Tensor, np.ndarray]] = []

    def leaf(self, array: np.ndarray) -> Tensor:
        """Return a leaf that will hold the array."""
        t = Tensor(NAMES[array.dtype], array.shape[::-1], name=f"leaf {len(self.data)}")
        self.data.append((t, array))
        return t

    def __call__(self, *wanted: Tensor) -> list[np.ndarray]:
        """Run what the outputs need and return their contents in their shapes."""
        for t in wanted:
            self.g.output(t)
        nodes = self.g.reachable()
        buffer = device().alloc(1 << 20)
        place, at = Place(buffer.handle, buffer.base, buffer.size), 0
        for t in [*(t for t, _ in self.data), *nodes]:
            if t.view_src is None:
                t.put(place, at)
                at += -(-t.nbytes // 64) * 64
        memory = np.frombuffer(buffer, np.uint8)
        for t, array in self.data:
            memory[t.offset : t.offset + t.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        encoder = Encoder([dialects.DEFAULT])
        device().compile(encoder.codec, encoder.graph(nodes), [buffer]).run()
        return [
            np.ndarray(t.shape, DTYPES[t.type], memory.data, t.offset, t.nb[: t.n_dims][::-1]).copy() for t in wanted
        ]


RNG = np.random.default_rng(7)
A = RNG.standard_normal((3, 5, 16)).astype(np.float32)
B = RNG.standard_normal((3, 5, 16)).astype(np.float32)
ROW = RNG.standard_normal(16).astype(np.float32)
W = RNG.standard_normal((7, 16)).astype(np.float32)
IDS = np.array([4, 0, 4], np.int32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotated(x: np.ndarray, pos: np.ndarray, base: float) -> np.ndarray:
    """Turn pairs half a head apart; x is [tokens, heads, size]."""
    half = x.shape[-1] // 2
    angle = pos[:, None, None] * base ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    turned = [first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle)]
    return np.concatenate(turned, -1)


Built = Callable[..., Tensor]
# Op: how it is built of leaves, the leaves, and what NumPy says (in float64).
CASES: dict[str, tuple[Built, tuple[np.ndarray, ...], Callable[..., np.ndarray]]] = {
    "add": (lambda g, a, b: g.add(a, b), (A, ROW), lambda a, b: a + b),
    "sub": (lambda g, a, b: g.sub(a, b), (A, B), lambda a, b: a - b),
    "mul": (lambda g, a, b: g.mul(a, b), (A, ROW), lambda a, b: a * b),
    "div": (lambda g, a, b: g.div(a, b), (A, B), lambda a, b: a / b),
    "scale": (lambda g, a: g.scale(a, 3.0, -1.0), (A,), lambda a: 3 * a - 1),
    "clamp": (lambda g, a: g.clamp(a, -0.5, 0.25), (A,), lambda a: np.clip(a, -0.5, 0.25)),
    "tanh": (lambda g, a: g.tanh(a), (A,), np.tanh),
    "silu": (lambda g, a: g.silu(a), (A,), lambda a: a * sigmoid(a)),
    "swiglu": (lambda g, a, b: g.swiglu(a, b), (A, B), lambda a, b: a * sigmoid(a) * b),
    "swiglu halves": (lambda g, a: g.swiglu(a), (A,), lambda a: a[..., :8] * sigmoid(a[..., :8]) * a[..., 8:]),
    "swiglu swapped": (
        lambda g, a: g.swiglu(a, swapped=True),
        (A,),
        lambda a: a[..., 8:] * sigmoid(a[..., 8:]) * a[..., :8],
    ),
    "sum_rows": (lambda g, a: g.sum_rows(a), (A,), lambda a: a.sum(-1, keepdims=True)),
    "mean": (lambda g, a: g.mean(a), (A,), lambda a: a.mean(-1, keepdims=True)),
    "rms_norm": (
        lambda g, a: g.rms_norm(a, 0.1),
        (A,),
        lambda a: a / np.sqrt((a * a).mean(-1, keepdims=True) + 0.1),
    ),
    "norm": (
        lambda g, a: g.norm(a, 0.1),
        (A,),
        lambda a: (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 0.1),
    ),
    "l2_norm": (
        lambda g, a: g.l2_norm(a, 1e-6),
        (A,),
        lambda a: a / np.sqrt((a * a).sum(-1, keepdims=True)),
    ),
    "mul_mat": (lambda g, w, a: g.mul_mat(w, a), (W, A), lambda w, a: a @ w.T),
    "mul_mat of a transposed": (
        lambda g, a, b: g.mul_mat(g.cont(g.transpose(a)), g.cont(g.transpose(b))),
        (A, B),
        lambda a, b: b.swapaxes(1, 2) @ a,
    ),
    "solve_tri": (
        lambda g, a, b: g.solve_tri(g.tri(g.add(a, b)), b),
        (np.eye(5, dtype=np.float32) * 9 + B[0, :, :5], B[1, :, :5].copy()),
        lambda a, b: np.linalg.solve(np.tril(a + b), b),
    ),
    "get_rows": (lambda g, w, i: g.get_rows(w, i), (W, IDS), lambda w, i: w[i]),
    "repeat": (lambda g, r: g.repeat(r, (16, 5)), (ROW,), lambda r: np.tile(r, (5, 1))),
    "concat": (lambda g, a, b: g.concat(a, b, 1), (A, B), lambda a, b: np.concatenate([a, b], 1)),
    "permute": (lambda g, a: g.cont(g.permute(a, 1, 2, 0, 3)), (A,), lambda a: a.transpose(1, 2, 0)),
    "cast": (lambda g, a: g.cast(g.cast(a, "F16"), "F32"), (A,), lambda a: a.astype(np.float16)),
    "soft_max": (
        lambda g, a, m: g.soft_max(a, m, scale=0.5),
        (A, B[0]),
        lambda a, m: softmax(a * 0.5 + m),
    ),
    "diag_mask_inf": (
        lambda g, a: g.soft_max(g.diag_mask_inf(a, 3)),
        (A,),
        lambda a: softmax(np.where(np.arange(16) > 3 + np.arange(5)[:, None], -np.inf, a)),
    ),
    "rope": (
        lambda g, a, p: g.rope(a, p, n_dims=16, mode=RopeMode.NEOX, freq_base=100.0),
        (A, np.array([0, 3, 9], np.int32)),
        lambda a, p: rotated(a, p, 100.0),
    ),
    "pad": (
        lambda g, a: g.pad(a, (1, 2), before=(3,)),
        (A,),
        lambda a: np.pad(a, ((0, 0), (0, 2), (3, 1))),
    ),
    "cumsum": (lambda g, a: g.cumsum(a), (A,), lambda a: a.cumsum(-1)),
    "argsort": (lambda g, a: g.argsort(a, "asc"), (A,), lambda a: a.argsort(-1)),
    "argmax": (lambda g, w: g.argmax(w), (W,), lambda w: w.argmax(-1)),
    "arange": (lambda g: g.arange(1.0, 3.0, 0.3), (), lambda: 1 + 0.3 * np.arange(7)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_numpy(name: str) -> None:
    build, arrays, expected = CASES[name]
    run = Run()
    (got,) = run(build(run.g, *(run.leaf(a) for a in arrays)))
    wanted = expected(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays))
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


def test_fused_attention_is_attention() -> None:
    heads, kv_heads, tokens, n_kv, size = 4, 2, 3, 8, 16
    q = RNG.standard_normal((heads, tokens, size)).astype(np.float32)
    k, v = (RNG.standard_normal((kv_heads, n_kv, size)).astype(np.float16) for _ in range(2))
    mask = np.where(np.arange(n_kv) > 4 + np.arange(tokens)[:, None], -np.inf, 0).astype(np.float16)
    run = Run()
    q_, k_, v_, mask_ = (run.leaf(a) for a in (q, k, v, mask))
    (got,) = run(run.g.flash_attn_ext(q_, k_, v_, mask_, scale=0.25))
    group = np.repeat(np.arange(kv_heads), heads // kv_heads)
    scores = q.astype(np.float64) @ k[group].astype(np.float64).swapaxes(1, 2) * 0.25 + mask
    wanted = softmax(scores) @ v[group].astype(np.float64)
    np.testing.assert_allclose(got, wanted.swapaxes(0, 1), atol=2e-3)


def test_experts_are_those_that_a_token_names() -> None:
    experts = RNG.standard_normal((4, 7, 16)).astype(np.float32)
    ids = np.array([[2, 0], [3, 3], [1, 2]], np.int32)
    x = RNG.standard_normal((3, 1, 16)).astype(np.float32)
    run = Run()
    (got,) = run(run.g.mul_mat_id(run.leaf(experts), run.leaf(x), run.leaf(ids)))
    wanted = np.einsum("teik,tk->tei", experts.astype(np.float64)[ids], x[:, 0].astype(np.float64))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_top_k_are_the_largest() -> None:
    run = Run()
    (got,) = run(run.g.top_k(run.leaf(A), 4))
    np.testing.assert_array_equal(np.sort(got, -1), np.sort(A.argsort(-1)[..., -4:], -1))


def test_rows_are_written_before_they_are_read() -> None:
    cache = np.zeros((6, 16), np.float16)
    run = Run()
    g, t = run.g, run.leaf(cache)
    g.set_rows(t, run.leaf(A[0, :3]), run.leaf(np.array([5, 0, 2], np.int64)))
    g.cpy(g.view(run.leaf(W), (16, 2)), g.view(t, (16, 2), offset=3 * 32))
    (got,) = run(g.cast(t, "F32"))
    cache[[5, 0, 2]] = A[0, :3]
    cache[3:5] = W[:2]
    np.testing.assert_array_equal(got, cache)


def test_a_region_is_set_in_place_or_in_a_copy() -> None:
    run = Run()
    g, base, part = run.g, run.leaf(A[0]), run.leaf(B[0, :2, :4])
    strides = (64, 320, 320)
    copy = g.set(base, part, strides, 64)
    unchanged = g.dup(base)
    changed = g.acc(base, part, strides, 64, inplace=True)
    copied, before, after = run(copy, unchanged, changed)
    wanted = A[0].copy()
    np.testing.assert_array_equal(before, wanted)
    wanted[1:3, :4] += B[0, :2, :4]
    np.testing.assert_array_equal(after, wanted)
    wanted[1:3, :4] = B[0, :2, :4]
    np.testing.assert_array_equal(copied, wanted)
