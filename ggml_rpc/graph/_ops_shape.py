"""Methods of `Graph` for ops that make or rearrange whole tensors: ranges, triangles, padding, windows, images."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from ggml_rpc.spec.enums import ScaleFlag, ScaleMode, TriKind

from ._node import F16, F32, Nodes, Op, choose, full
from ._tensor import Tensor

_DIAG, _TRI = Op("DIAG"), Op("TRI", "kind")
_PAD = Op("PAD", "lp0 rp0 lp1 rp1 lp2 rp2 lp3 rp3 circular")
_PAD_REFLECT_1D = Op("PAD_REFLECT_1D", "p0 p1")
_ROLL = Op("ROLL", "shift0 shift1 shift2 shift3")
_ARANGE = Op("ARANGE", "start stop step")
_TIMESTEP_EMBEDDING = Op("TIMESTEP_EMBEDDING", "dim max_period")
_UPSCALE = Op("UPSCALE", "mode")
_WIN_PART, _WIN_UNPART = Op("WIN_PART", "npx npy window"), Op("WIN_UNPART", "window")
_GET_REL_POS, _ADD_REL_POS = Op("GET_REL_POS"), Op("ADD_REL_POS", "inplace")


def _f32(x: float) -> float:
    """Return the value of x in F32, infinity beyond its range."""
    try:
        (value,) = struct.unpack("<f", struct.pack("<f", x))
    except OverflowError:
        return math.inf
    return float(value)


class ShapeOps(Nodes):
    """Ops that make or rearrange whole tensors. `x` is F32."""

    def diag(self, x: Tensor) -> Tensor:
        """Put each row of `x` [n, 1, ...] on the diagonal of a matrix [n, n, ...] of zeros."""
        n, _, ne2, ne3 = x.ne
        return self._add(_DIAG, x.type_id, (n, n, ne2, ne3), (x,), dims=max(2, x.n_dims))

    def tri(self, x: Tensor, kind: str | int = TriKind.LOWER_DIAG) -> Tensor:
        """Keep a triangle of square matrices: "lower", "upper", "lower_diag" or "upper_diag" (with the diagonal)."""
        return self._like(_TRI, x, (x,), (kind,))

    def pad(
        self, x: Tensor, after: Sequence[int], *, before: Sequence[int] = (0, 0, 0, 0), circular: bool = False
    ) -> Tensor:
        """Put zeros, or (`circular`) what stands at the other end, around `x`: how many of each dimension."""
        if len(after) > 4 or len(before) > 4:
            raise self._broken(_PAD, "there are four dimensions to pad")
        left = (*before, 0, 0, 0, 0)[:4]
        right = (*after, 0, 0, 0, 0)[:4]
        ne = [n + lp + rp for n, lp, rp in zip(x.ne, left, right, strict=True)]
        values = [v for pair in zip(left, right, strict=True) for v in pair]
        return self._add(_PAD, x.type_id, ne, (x,), (*values, circular), dims=x.n_dims)

    def pad_reflect_1d(self, x: Tensor, before: int, after: int) -> Tensor:
        """Mirror so many elements at the ends of rows."""
        ne0, ne1, ne2, ne3 = x.ne
        ne = (ne0 + before + after, ne1, ne2, ne3)
        return self._add(_PAD_REFLECT_1D, x.type_id, ne, (x,), (before, after), dims=x.n_dims)

    def roll(self, x: Tensor, shift0: int, shift1: int = 0, shift2: int = 0, shift3: int = 0) -> Tensor:
        """Move elements on by so many places of each dimension; what leaves comes back at the other end."""
        return self._like(_ROLL, x, (x,), (shift0, shift1, shift2, shift3))

    def arange(self, start: float, stop: float, step: float = 1.0) -> Tensor:
        """Make the numbers from `start` below `stop`."""
        self._words(_ARANGE, (start, stop, step))
        lo, hi, by = _f32(start), _f32(stop), _f32(step)
        if not (hi > lo and by > 0 and math.isfinite(lo) and math.isfinite(hi)):
            raise self._broken(_ARANGE, f"the range {start} to {stop} by {step} must be finite and grow")
        # Peers count in F32.
        n = _f32(_f32(hi - lo) / by)
        if n >= 2**31:
            raise self._broken(_ARANGE, f"the range {start} to {stop} by {step} has more than 2^31 numbers")
        return self._add(_ARANGE, F32, (math.ceil(n),), (), (start, stop, step))

    def timestep_embedding(self, x: Tensor, dim: int, max_period: int = 10000) -> Tensor:
        """Embed the times `x` [n] by cosines and sines of falling frequency: [dim, n]."""
        return self._add(_TIMESTEP_EMBEDDING, F32, (dim, x.ne[0], 1, 1), (x,), (dim, max_period), dims=2)

    def upscale(
        self,
        x: Tensor,
        ne: Sequence[int],
        mode: str | int = ScaleMode.NEAREST,
        *,
        align_corners: bool = False,
        antialias: bool = False,
    ) -> Tensor:
        """Interpolate to the shape `ne`, larger or smaller: "nearest", "bilinear" or "bicubic"."""
        if not 1 <= len(ne) <= 4:
            raise self._broken(_UPSCALE, f"shape {list(ne)}: 1 to 4 dimensions are possible")
        try:
            word = choose(ScaleMode, "mode", mode)
        except ValueError as error:
            raise self._broken(_UPSCALE, error) from None
        word |= ScaleFlag.ALIGN_CORNERS * align_corners | ScaleFlag.ANTIALIAS * antialias
        return self._add(_UPSCALE, x.type_id, full(ne), (x,), (word,), dims=len(ne))

    def win_part(self, x: Tensor, window: int) -> Tensor:
        """Cut `x` [c, w, h] into windows, padded with zeros: [c, window, window, windows across * down]."""
        if window <= 0:
            raise self._broken(_WIN_PART, f"the window must be positive, not {window}")
        c, w, h, _ = x.ne
        npx, npy = -(-w // window), -(-h // window)
        return self._add(_WIN_PART, x.type_id, (c, window, window, npx * npy), (x,), (npx, npy, window))

    def win_unpart(self, x: Tensor, width: int, height: int, window: int) -> Tensor:
        """Join what `win_part` cut: [c, width, height]."""
        return self._add(_WIN_UNPART, x.type_id, (x.ne[0], width, height, 1), (x,), (window,), dims=3)

    def get_rel_pos(self, x: Tensor, n: int) -> Tensor:
        """Fetch from `x` [c, 2n - 1] F16 the row of each relative position of a query to a key: [c, n, n] F16."""
        return self._add(_GET_REL_POS, F16, (x.ne[0], n, n, 1), (x,), dims=3)

    def add_rel_pos(self, x: Tensor, pw: Tensor, ph: Tensor, *, inplace: bool = False) -> Tensor:
        """Add terms of the relative position across (`pw`) and down (`ph`) to the scores `x`."""
        make = self._into if inplace else self._like
        return make(_ADD_REL_POS, x, (x, pw, ph), (inplace,))
