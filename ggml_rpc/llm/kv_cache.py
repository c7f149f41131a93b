"""Keys and values of the positions so far: which cell holds which position, and the tensors on the layers' devices.

All masks come from the positions that cells hold. Layers with a sliding window share a smaller cache, a ring that
overwrites what no later position can see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ContextError
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.spec.types import TYPE_BY_NAME

from .arch.blocks import LayerCache
from .mask_form import mask_multiple

if TYPE_CHECKING:
    from ggml_rpc.client.device import Buffer, Device

    from .hparams import HParams

CACHE_TYPES = ("F16", "BF16", "F32", "Q8_0", "Q4_0")
"""Types that keys and values may be kept in."""

CELLS_STEP = 256
"""Caches, and the part of one that a graph reads, are multiples of this: fewer graphs to build."""

_EMPTY = -1
_HIDDEN = -np.inf


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Say how keys and values are kept.

    Parameters
    ----------
    n_ctx : int
        Positions that layers without a window remember.
    n_ubatch : int
        Most tokens of one graph.
    flash : bool
        Flash attention: V lies as K does, masks are F16. Without it V lies transposed.
    type_k, type_v : str
        Types from `CACHE_TYPES`.
    whole_window : bool
        Layers with a window remember all positions too: more memory, but the context can be cut back at any point.
    """

    n_ctx: int
    n_ubatch: int
    flash: bool = False
    type_k: str = "F16"
    type_v: str = "F16"
    whole_window: bool = False

    def check(self, hp: HParams) -> None:
        """Raise `ContextError` if the model cannot be run so."""
        for name in (self.type_k, self.type_v):
            if name not in CACHE_TYPES:
                raise ContextError(f"the cache cannot be of type {name}; it can be {', '.join(CACHE_TYPES)}")
        if not self.flash and TYPE_BY_NAME[self.type_v].block > 1:
            raise ContextError(f"values in {self.type_v} need flash attention: turn it on, or keep them in F16")
        for name, dim in ((self.type_k, hp.head_dim_k), (self.type_v, hp.head_dim_v)):
            if dim % TYPE_BY_NAME[name].block:
                block = TYPE_BY_NAME[name].block
                raise ContextError(
                    f"the cache cannot be {name}: this model's heads of {dim} are no whole blocks of {block}"
                )


@dataclass(frozen=True, slots=True)
class Kind:
    """Layers that write and read the same cells.

    Parameters
    ----------
    window : int
        Positions that they see; 0: all.
    width_v : int
        Elements of V in a cell.
    n_cells : int
        Cells of each of the layers.
    """

    window: int
    width_v: int
    n_cells: int


def kind_of(hp: HParams, settings: CacheSettings, il: int) -> Kind:
    """Return the kind of a layer's cache."""
    n_ctx = padded(settings.n_ctx)
    window = hp.window if hp.windowed[il] else 0
    n_cells = n_ctx
    if window and not settings.whole_window:
        n_cells = min(n_ctx, padded(window + settings.n_ubatch))
    return Kind(window, hp.n_embd_v(il), n_cells)


def cache_leaves(hp: HParams, settings: CacheSettings, il: int) -> tuple[Tensor, Tensor]:
    """Return a layer's K and V without a place: what the cache takes on the layer's device."""
    n_cells = kind_of(hp, settings, il).n_cells
    return (
        Tensor(settings.type_k, (hp.n_embd_k(il), n_cells), name=f"cache_k_l{il}"),
        Tensor(settings.type_v, (hp.n_embd_v(il), n_cells), name=f"cache_v_l{il}"),
    )


def padded(n: int) -> int:
    """Return the next multiple of `CELLS_STEP`."""
    return rounded(n, CELLS_STEP)


def rounded(n: int, multiple: int) -> int:
    """Return the next multiple of a number."""
    return -(-n // multiple) * multiple


class Cells:
    """Which position each cell of one kind of cache holds.

    Position p is written to cell p modulo the number of cells. Cells hold at least a window and a batch, so that what
    is overwritten is out of sight for all tokens of the batch.

    Parameters
    ----------
    kind : Kind
        Sizes.
    mask_type : numpy dtype
        float32 or float16.
    transposed : bool
        V lies transposed: its rows are single elements.
    multiple : int
        Masks of several tokens have a multiple of this many rows.
    """

    def __init__(self, kind: Kind, mask_type: np.dtype[Any], *, transposed: bool, multiple: int = 1) -> None:
        self.kind = kind
        self._multiple = multiple
        self._positions = np.full(kind.n_cells, _EMPTY, np.int64)
        self._used = 0
        self._channels = np.arange(kind.width_v, dtype=np.int64) * kind.n_cells if transposed else None
        # The mask of one token, kept from token to token: two cells of it change.
        self._row = np.full(kind.n_cells, _HIDDEN, mask_type)
        self._row_position = _EMPTY
        self.step_k = np.zeros(1, np.int64)
        self.step_v = np.zeros(kind.width_v, np.int64) if transposed else self.step_k

    @property
    def n_kv(self) -> int:
        """Return how many cells from the first on a graph must read."""
        return min(self.kind.n_cells, max(CELLS_STEP, padded(self._used)))

    @property
    def step_mask(self) -> NDArray[Any]:
        """The mask of the position that `step` was last called for: [n_cells], of which a graph takes n_kv."""
        return self._row

    def step(self, position: int) -> None:
        """Take in one position after the last: sets `step_k`, `step_v` and `step_mask` in place."""
        kind = self.kind
        cell = position % kind.n_cells
        self._positions[cell] = position
        if cell >= self._used:
            self._used = cell + 1
        self.step_k[0] = cell
        if self._channels is not None:
            np.add(self._channels, cell, out=self.step_v)
        row = self._row
        if self._row_position != position - 1 or position == 0:
            self._fill(position, 1, row.reshape(1, -1))
        else:
            last = position - kind.window
            if kind.window and last >= 0:
                row[last % kind.n_cells] = _HIDDEN
            row[cell] = 0
        self._row_position = position

    def append(self, first: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Take in positions `first` to `first + n - 1`.

        Returns
        -------
        k_rows, v_rows : ndarray
            int64 rows that their K and V are written to: [n], and for transposed V [n * width_v].
        """
        positions = np.arange(first, first + n, dtype=np.int64)
        cells = positions % self.kind.n_cells
        self._positions[cells] = positions
        self._used = max(self._used, int(cells.max()) + 1)
        self._row_position = _EMPTY
        if self._channels is None:
            return cells, cells
        return cells, (cells[:, None] + self._channels).reshape(-1)

    def mask(self, first: int, n: int) -> NDArray[Any]:
        """Return what tokens at positions from `first` on see: [n or more, n_kv], 0 or minus infinity."""
        out = np.zeros((rounded(n, self._multiple), self.n_kv), self._row.dtype)
        self._fill(first, n, out[:n])
        return out

    def _fill(self, first: int, n: int, out: NDArray[Any]) -> None:
        held = self._positions[: out.shape[1]]
        tokens = np.arange(first, first + n, dtype=np.int64)[:, None]
        hidden = (held == _EMPTY) | (held > tokens)
        if self.kind.window:
            hidden |= held <= tokens - self.kind.window
        out[...] = 0
        out[hidden] = _HIDDEN

    def can_cut(self, position: int) -> bool:
        """Tell whether all that the token at `position` would see is still held."""
        first = max(0, position - self.kind.window + 1) if self.kind.window else 0
        seen = np.arange(first, position, dtype=np.int64)
        # A ring may be asked for a position long gone: its cell then holds another.
        return bool((self._positions[seen % self.kind.n_cells] == seen).all())

    def cut(self, position: int) -> None:
        """Forget `position` and all after it."""
        self._positions[self._positions >= position] = _EMPTY
        filled = np.flatnonzero(self._positions != _EMPTY)
        self._used = int(filled[-1]) + 1 if filled.size else 0
        self._row_position = _EMPTY


class KvCache:
    """The cache of one sequence over all layers.

    Parameters
    ----------
    hp : HParams
        The model's settings.
    settings : CacheSettings
        Sizes and types.
    layer_device : sequence of Device
        Where each layer's part lies.

    Raises
    ------
    ContextError
        If the settings do not suit the model.
    OutOfMemory
        If a device has no room; nothing stays reserved.
    """

    def __init__(self, hp: HParams, settings: CacheSettings, layer_device: Sequence[Device]) -> None:
        settings.check(hp)
        self.settings = settings
        self.n_ctx = padded(settings.n_ctx)
        self.n_past = 0
        kinds = [kind_of(hp, settings, il) for il in range(hp.n_layer)]
        distinct = list(dict.fromkeys(kinds))
        self.kind_of_layer = [distinct.index(kind) for kind in kinds]
        """Index into `cells` of each layer."""
        mask_type = np.dtype(np.float16 if settings.flash else np.float32)
        self.mask_multiple = mask_multiple(layer_device, flash=settings.flash, windowed=hp.window > 0)
        self.cells = [
            Cells(kind, mask_type, transposed=not settings.flash, multiple=self.mask_multiple) for kind in distinct
        ]
        leaves = [cache_leaves(hp, settings, il) for il in range(hp.n_layer)]
        self._buffers: list[Buffer] = []
        by_device: dict[Device, list[Tensor]] = {}
        for pair, device in zip(leaves, layer_device, strict=True):
            by_device.setdefault(device, []).extend(pair)
        rotations: dict[tuple[Device, int], Tensor] = {}
        n_k = _rotation(settings.type_k, hp.head_dim_k, whole=True)
        n_v = _rotation(settings.type_v, hp.head_dim_v, whole=False)
        try:
            for device, tensors in by_device.items():
                # Zeroed: a masked cell still takes part in sums, and 0 times a stale NaN is NaN.
                self._buffers += device.place(tensors, clear=0)
            for device in by_device:
                for n in {n_k, n_v} - {0}:
                    t = rotations[device, n] = Tensor("F32", (n, n), name=f"rotation_{n}")
                    self._buffers += device.place([t])
                    device.write(t, hadamard(n))
        except BaseException:
            self.free()
            raise
        self.layers = [
            LayerCache(k, v, rotations.get((device, n_k)), rotations.get((device, n_v)))
            for (k, v), device in zip(leaves, layer_device, strict=True)
        ]
        """Each layer's part."""

    @property
    def nbytes(self) -> int:
        """Bytes reserved on all devices."""
        return sum(buffer.size for buffer in self._buffers)

    def cut(self, position: int) -> int:
        """Forget all positions from `position` on.

        Returns
        -------
        int
            How many positions are left: `position`, or 0 if a ring has overwritten what a token there would see.
        """
        if position >= self.n_past:
            return self.n_past
        if position > 0 and not all(cells.can_cut(position) for cells in self.cells):
            position = 0
        for cells in self.cells:
            cells.cut(position)
        self.n_past = position
        return position

    def free(self) -> None:
        """Give the devices' memory back."""
        for buffer in self._buffers:
            buffer.free()


def _rotation(type: str, head_dim: int, *, whole: bool) -> int:
    """Return the length of the rotation for heads kept in a type, 0 for none.

    Those of llama.cpp: only heads of whole 64s; keys take the largest power of two that divides a head, values 64.
    """
    if TYPE_BY_NAME[type].block == 1 or head_dim % 64:
        return 0
    return head_dim & -head_dim if whole else 64


def hadamard(n: int) -> NDArray[np.float32]:
    """Return the orthonormal symmetric matrix of Walsh and Hadamard, [n, n]; n is a power of two."""
    matrix = np.full((1, 1), 1.0 / np.sqrt(n), np.float32)
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
