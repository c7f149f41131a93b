"""Cells hold what later tokens must see, and masks show them just that, whatever the order of appends and cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggml_rpc.client.local import local_devices
from ggml_rpc.errors import ContextError
from ggml_rpc.llm.hparams import HParams, Rope
from ggml_rpc.llm.kv_cache import CacheSettings, Cells, Kind, KvCache, hadamard, kind_of
from ggml_rpc.spec.enums import RopeMode

ROPE = Rope(RopeMode.NEOX, 64, 1e4, 1.0, 1e4, 1.0, 4096, "none", 0.0, 1.0)


def small(**changes: object) -> HParams:
    """Return settings of a model of four layers, of which three have a window of 300."""
    values: dict[str, object] = {
        "architecture": "gemma3",
        "n_vocab": 512,
        "n_ctx_train": 4096,
        "n_embd": 256,
        "n_layer": 4,
        "n_head": (4,) * 4,
        "n_head_kv": (2,) * 4,
        "n_ff": (512,) * 4,
        "head_dim_k": 64,
        "head_dim_v": 64,
        "eps": 1e-6,
        "rope": ROPE,
        "windowed": (True, True, True, False),
        "window": 300,
    }
    return HParams(**{**values, **changes})  # type: ignore[arg-type]


class Model:
    """What the cells stand for: a list of written positions, the last write of each cell."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.written: dict[int, int] = {}

    def write(self, position: int) -> None:
        self.written[position % self.kind.n_cells] = position

    def row(self, position: int, n_kv: int) -> np.ndarray:
        """Return the mask of one token, cell by cell."""
        out = np.full(n_kv, -np.inf, np.float32)
        for cell in range(n_kv):
            held = self.written.get(cell)
            if held is not None and held <= position and (not self.kind.window or position - held < self.kind.window):
                out[cell] = 0
        return out


@settings(max_examples=60)
@given(
    window=st.sampled_from([0, 1, 16, 200]),
    transposed=st.booleans(),
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 56)),
            st.tuples(st.just("steps"), st.integers(1, 40)),
            st.tuples(st.just("cut"), st.integers(1, 120)),
        ),
        max_size=12,
    ),
)
def test_masks_follow_from_positions(window: int, transposed: bool, actions: list[tuple[str, int]]) -> None:
    kind = Kind(window, 3, 256 if window else 1024)
    cells = Cells(kind, np.dtype(np.float32), transposed=transposed)
    model, past = Model(kind), 0
    for action, n in actions:
        if action == "cut":
            position = max(0, past - n)
            first = max(0, position - window + 1) if window else 0
            can = all(model.written.get(p % kind.n_cells) == p for p in range(first, position))
            assert cells.can_cut(position) == can
            past = position if can else 0
            cells.cut(past)
            model.written = {c: p for c, p in model.written.items() if p < past}
            continue
        if past + n > 1024:
            break
        positions = range(past, past + n)
        if action == "append":
            k_rows, v_rows = cells.append(past, n)
            for position in positions:
                model.write(position)
            got = cells.mask(past, n)
        else:
            rows, k_list, v_list = [], [], []
            for position in positions:
                cells.step(position)
                model.write(position)
                np.testing.assert_array_equal(cells.step_mask[: cells.n_kv], model.row(position, cells.n_kv))
                rows.append(cells.step_mask.copy())
                k_list.append(cells.step_k.copy())
                v_list.append(cells.step_v.copy())
            got = np.stack(rows)[:, : cells.n_kv]
            k_rows, v_rows = np.concatenate(k_list), np.concatenate(v_list)
        assert cells.n_kv % 256 == 0
        assert cells.n_kv <= kind.n_cells
        assert max(model.written) < cells.n_kv
        assert k_rows.tolist() == [p % kind.n_cells for p in positions]
        if transposed:
            assert v_rows.tolist() == [c * kind.n_cells + p % kind.n_cells for p in positions for c in range(3)]
        else:
            assert v_rows.tolist() == k_rows.tolist()
        if action == "append":
            for position, row in zip(positions, got, strict=True):
                np.testing.assert_array_equal(row, model.row(position, cells.n_kv))
        # What the last token must see is there: nothing that was overwritten is missing.
        last = past + n - 1
        seen = last + 1 if not window else min(window, last + 1)
        assert (model.row(last, cells.n_kv) == 0).sum() == seen
        past += n


def test_windowed_layers_share_a_ring() -> None:
    hp = small()
    ring = CacheSettings(n_ctx=4000, n_ubatch=128)
    assert kind_of(hp, ring, 0) == Kind(300, 128, 512)
    assert kind_of(hp, ring, 3) == Kind(0, 128, 4096)
    assert kind_of(hp, CacheSettings(n_ctx=256, n_ubatch=128), 0).n_cells == 256
    whole = CacheSettings(n_ctx=4000, n_ubatch=128, whole_window=True)
    assert kind_of(hp, whole, 0) == Kind(300, 128, 4096)


def test_memory_lies_on_the_layers_devices_and_is_zero() -> None:
    a, b = local_devices(threads=1)[0], local_devices(threads=1)[0]
    cache = KvCache(small(), CacheSettings(n_ctx=1024, n_ubatch=64), [a, a, b, b])
    assert [layer.k.place.device for layer in cache.layers if layer.k.place is not None] == [a, a, b, b]
    assert cache.nbytes >= 2 * 2 * 128 * (3 * 512 + 1024)
    assert not any(a.read_bytes(layer.v).strip(b"\0") for layer in cache.layers)
    assert cache.kind_of_layer == [0, 0, 0, 1]
    cache.free()


def test_cut_of_a_ring_begins_anew_when_positions_are_gone() -> None:
    device = local_devices(threads=1)[0]
    cache = KvCache(small(), CacheSettings(n_ctx=1024, n_ubatch=64), [device] * 4)
    for first in range(0, 640, 64):
        for cells in cache.cells:
            cells.append(first, 64)
    cache.n_past = 640
    # The ring of 512 holds 128 to 639; a token at 428 sees 129 to 428, one at 427 sees 128, one at 426 sees 127.
    assert cache.cut(640) == 640
    assert cache.cut(427) == 427
    assert cache.cut(426) == 0
    assert cache.n_past == 0


@pytest.mark.parametrize(
    ("settings_", "changes", "message"),
    [
        ({"type_v": "Q8_0"}, {}, "need flash attention"),
        ({"type_k": "Q6_K"}, {}, "cannot be of type Q6_K"),
        ({"type_k": "Q8_0"}, {"head_dim_k": 80}, "no whole blocks of 32"),
        ({"type_v": "Q4_0", "flash": True}, {"head_dim_v": 80}, "no whole blocks of 32"),
    ],
)
def test_unsuitable_settings(settings_: dict[str, object], changes: dict[str, object], message: str) -> None:
    device = local_devices(threads=1)[0]
    with pytest.raises(ContextError, match=message):
        KvCache(small(**changes), CacheSettings(256, 64, **settings_), [device] * 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("type_k", "type_v", "head_dim", "lengths"),
    [
        ("F16", "F16", 64, (0, 0)),
        ("Q8_0", "Q8_0", 32, (0, 0)),
        ("Q8_0", "F16", 64, (64, 0)),
        ("Q8_0", "Q4_0", 128, (128, 64)),
        ("Q8_0", "Q8_0", 192, (64, 64)),
        ("F16", "Q8_0", 256, (0, 64)),
    ],
)
def test_quantised_rows_are_rotated(type_k: str, type_v: str, head_dim: int, lengths: tuple[int, int]) -> None:
    device = local_devices(threads=1)[0]
    hp = small(head_dim_k=head_dim, head_dim_v=head_dim)
    cache = KvCache(hp, CacheSettings(256, 64, True, type_k, type_v), [device] * 4)
    layer = cache.layers[0]
    assert tuple(0 if t is None else t.ne[0] for t in (layer.rotate_k, layer.rotate_v)) == lengths


@pytest.mark.parametrize("n", [1, 2, 64, 256])
def test_rotation_undoes_itself(n: int) -> None:
    matrix = hadamard(n)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix @ matrix, np.eye(n), atol=1e-6)
    assert (matrix == matrix.T).all()
