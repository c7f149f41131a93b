"""Methods of `Graph` that look at memory in another way, and those that copy it."""

from __future__ import annotations

from collections.abc import Sequence

from ggml_rpc.spec.types import TYPE_BY_ID

from ._node import Nodes, Op, describe, full, type_id
from ._tensor import Tensor

_RESHAPE, _TRANSPOSE = Op("RESHAPE"), Op("TRANSPOSE")
_VIEW = Op("VIEW", "offset")
_PERMUTE = Op("PERMUTE", "axis0 axis1 axis2 axis3")
_DUP, _CONT, _CPY, _CAST = Op("DUP"), Op("CONT"), Op("CPY"), Op("CPY", label="cast")
_REPEAT = Op("REPEAT")
_CONCAT = Op("CONCAT", "dim")
_REGION = "nb1 nb2 nb3 offset inplace"
_ACC, _SET = Op("ACC", _REGION), Op("SET", _REGION)


class ViewOps(Nodes):
    """Views and copies."""

    # ---- Views: no work, no memory ----

    def reshape(self, x: Tensor, *ne: int) -> Tensor:
        """Look at `x`, which must be without gaps, in another shape of as many elements."""
        if not x.is_contiguous:
            raise self._broken(_RESHAPE, f"the source {describe(x)} has gaps or is permuted: use cont first")
        shape = self._shape(_RESHAPE, ne)
        if shape[0] * shape[1] * shape[2] * shape[3] != x.n_elements:
            raise self._broken(_RESHAPE, f"{list(ne)} has not the {x.n_elements} elements of the source {describe(x)}")
        return self._look(_RESHAPE, x, shape, None, dims=len(ne))

    def view(self, x: Tensor, ne: Sequence[int], *, nb: Sequence[int] | None = None, offset: int = 0) -> Tensor:
        """Look at a part of `x`.

        Parameters
        ----------
        x : Tensor
            What to look at. A row of the view is without gaps.
        ne : sequence of int
            Its shape.
        nb : sequence of int, optional
            Byte strides of dimensions 1 and up, as many as are known; the others follow without gaps.
        offset : int
            Where in `x` it begins, in bytes.

        Raises
        ------
        GraphError
            If it reaches beyond `x` or what that is a view of, or cuts elements or blocks.
        """
        shape = self._shape(_VIEW, ne)
        spec = TYPE_BY_ID[x.type_id]
        if shape[0] % spec.block:
            raise self._broken(_VIEW, f"rows of {shape[0]} are no whole number of blocks of {spec.name} ({spec.block})")
        if offset < 0:
            raise self._broken(_VIEW, f"the offset must not be negative, but is {offset}")
        given = () if nb is None else tuple(nb)
        if len(given) > 3:
            raise self._broken(_VIEW, f"nb = {list(given)}: at most three strides, for dimensions 1 to 3")
        strides = [spec.bytes, *given]
        if len(strides) == 1:
            strides.append(spec.row_bytes(shape[0]))
        while len(strides) < 4:
            strides.append(strides[-1] * shape[len(strides) - 1])
        return self._look(_VIEW, x, shape, strides, (offset,), dims=len(ne), offset=offset)

    def permute(self, x: Tensor, a0: int, a1: int, a2: int, a3: int) -> Tensor:
        """Reorder dimensions: dimension i of `x` becomes dimension a_i of the result."""
        axes = (a0, a1, a2, a3)
        if sorted(axes) != [0, 1, 2, 3]:
            raise self._broken(_PERMUTE, f"axes {list(axes)}: each of 0 to 3 must occur once")
        self._keep_rows(_PERMUTE, x, axes)
        ne, nb = [0, 0, 0, 0], [0, 0, 0, 0]
        for axis, n, stride in zip(axes, x.ne, x.nb, strict=True):
            ne[axis], nb[axis] = n, stride
        dims = max(axes[: x.n_dims]) + 1
        return self._look(_PERMUTE, x, ne, nb, axes, dims=dims)

    def transpose(self, x: Tensor) -> Tensor:
        """Exchange dimensions 0 and 1."""
        self._keep_rows(_TRANSPOSE, x, (1, 0))
        ne0, ne1, ne2, ne3 = x.ne
        nb0, nb1, nb2, nb3 = x.nb
        dims = x.n_dims if x.n_dims > 2 else 2
        return self._look(_TRANSPOSE, x, (ne1, ne0, ne2, ne3), (nb1, nb0, nb2, nb3), dims=dims)

    def _keep_rows(self, op: Op, x: Tensor, axes: Sequence[int]) -> None:
        spec = TYPE_BY_ID[x.type_id]
        if spec.block > 1 and axes[0] != 0:
            raise self._broken(op, f"the blocks of {spec.name} lie along dimension 0, which must stay")
        if spec.row_group > 1 and axes[1] != 1:
            raise self._broken(op, f"the rows of {spec.name} are interleaved: dimension 1 must stay")

    def _shape(self, op: Op, ne: Sequence[int]) -> tuple[int, int, int, int]:
        if not 1 <= len(ne) <= 4 or min(ne) < 0:
            raise self._broken(op, f"shape {list(ne)}: 1 to 4 sizes of 0 and up are possible")
        return full(ne)

    # ---- Copies ----

    def dup(self, x: Tensor) -> Tensor:
        """Copy `x` to memory of its own, without gaps."""
        return self._like(_DUP, x, (x,))

    def cont(self, x: Tensor, ne: Sequence[int] | None = None) -> Tensor:
        """Copy `x` to memory without gaps, in the shape `ne` if it is given."""
        if ne is None:
            return self._like(_CONT, x, (x,))
        return self._add(_CONT, x.type_id, self._shape(_CONT, ne), (x,), dims=len(ne))

    def cast(self, x: Tensor, type: str) -> Tensor:
        """Copy `x` as another type."""
        return self._add(_CAST, type_id(type), x.ne, (x,), dims=x.n_dims)

    def cpy(self, x: Tensor, dst: Tensor) -> Tensor:
        """Copy `x` into `dst`, of as many elements and any type and shape; the result is a view of `dst`."""
        return self._into(_CPY, dst, (x, dst))

    def repeat(self, x: Tensor, ne: Sequence[int]) -> Tensor:
        """Repeat `x` until it fills the shape `ne`."""
        return self._add(_REPEAT, x.type_id, self._shape(_REPEAT, ne), (x,), dims=len(ne))

    def concat(self, a: Tensor, b: Tensor, dim: int) -> Tensor:
        """Put `b` behind `a` along dimension `dim`; the others are alike."""
        ne = list(a.ne)
        if not 0 <= dim < len(ne):
            raise self._broken(_CONCAT, f"dim must be 0 to 3, not {dim}")
        ne[dim] += b.ne[dim]
        return self._add(_CONCAT, a.type_id, ne, (a, b), (dim,), dims=max(a.n_dims, b.n_dims, dim + 1))

    # ---- A region of a tensor ----

    def acc(self, a: Tensor, b: Tensor, nb: Sequence[int], offset: int = 0, *, inplace: bool = False) -> Tensor:
        """Add `b` to a region of `a`.

        Parameters
        ----------
        a, b : Tensor
            F32.
        nb : sequence of int
            Byte strides of dimensions 1 to 3 of the region.
        offset : int
            Where in `a` it begins, in bytes.
        inplace : bool
            Change `a` itself; the result is a view of it.
        """
        return self._region(_ACC, a, b, nb, offset, inplace=inplace)

    def set(self, a: Tensor, b: Tensor, nb: Sequence[int], offset: int = 0, *, inplace: bool = False) -> Tensor:
        """Put `b` in the place of a region of `a`, given as `acc` takes it; F32 or I32."""
        return self._region(_SET, a, b, nb, offset, inplace=inplace)

    def _region(self, op: Op, a: Tensor, b: Tensor, nb: Sequence[int], offset: int, *, inplace: bool) -> Tensor:
        if len(nb) != 3:
            raise self._broken(op, f"nb = {list(nb)}: three strides are needed, for dimensions 1 to 3")
        values = (nb[0], nb[1], nb[2], offset, inplace)
        return self._into(op, a, (a, b), values) if inplace else self._like(op, a, (a, b), values)
