"""Methods of `Graph` for ops along whole rows: norms, sums, sorting."""

from __future__ import annotations

from ggml_rpc.spec.enums import SortOrder

from ._node import F32, I32, I64, Nodes, Op
from ._tensor import Tensor

_NORM, _RMS_NORM, _L2_NORM = Op("NORM", "eps"), Op("RMS_NORM", "eps"), Op("L2_NORM", "eps")
_GROUP_NORM = Op("GROUP_NORM", "n_groups eps")
_SUM, _SUM_ROWS, _MEAN, _CUMSUM = Op("SUM"), Op("SUM_ROWS"), Op("MEAN"), Op("CUMSUM")
_ARGMAX, _COUNT_EQUAL, _TOP_K = Op("ARGMAX"), Op("COUNT_EQUAL"), Op("TOP_K")
_ARGSORT = Op("ARGSORT", "order")


class ReductionOps(Nodes):
    """Norms, sums and orders of rows. `x` is F32 unless a method says otherwise."""

    def norm(self, x: Tensor, eps: float) -> Tensor:
        """Bring rows to mean 0 and variance 1; `eps` is added to the variance."""
        return self._like(_NORM, x, (x,), (eps,))

    def rms_norm(self, x: Tensor, eps: float) -> Tensor:
        """Divide rows by the root of the mean of their squares; `eps` is added to the mean."""
        return self._like(_RMS_NORM, x, (x,), (eps,))

    def l2_norm(self, x: Tensor, eps: float) -> Tensor:
        """Divide rows by their length, but by no less than `eps`."""
        return self._like(_L2_NORM, x, (x,), (eps,))

    def group_norm(self, x: Tensor, n_groups: int, eps: float) -> Tensor:
        """Bring each of `n_groups` groups of channels (dimension 2) to mean 0 and variance 1."""
        return self._like(_GROUP_NORM, x, (x,), (n_groups, eps))

    def sum(self, x: Tensor) -> Tensor:
        """Sum all elements (F32, F16 or BF16) to one."""
        return self._add(_SUM, x.type_id, (1,), (x,))

    def sum_rows(self, x: Tensor) -> Tensor:
        """Sum each row to one element."""
        return self._add(_SUM_ROWS, x.type_id, (1, *x.ne[1:]), (x,), dims=x.n_dims)

    def mean(self, x: Tensor) -> Tensor:
        """Take the mean of each row."""
        return self._add(_MEAN, F32, (1, *x.ne[1:]), (x,), dims=x.n_dims)

    def cumsum(self, x: Tensor) -> Tensor:
        """Sum each element of a row with all before it."""
        return self._like(_CUMSUM, x, (x,))

    def argmax(self, x: Tensor) -> Tensor:
        """Find the place of the largest element of each row of `x` [k, n]: [n] I32."""
        return self._add(_ARGMAX, I32, (x.ne[1],), (x,))

    def count_equal(self, a: Tensor, b: Tensor) -> Tensor:
        """Count the places where `a` and `b` (I32) have the same element: one I64."""
        return self._add(_COUNT_EQUAL, I64, (1,), (a, b))

    def argsort(self, x: Tensor, order: str | int = SortOrder.DESC) -> Tensor:
        """Give the places of each row's elements in order, "desc" or "asc": I32 in the shape of `x`."""
        return self._add(_ARGSORT, I32, x.ne, (x,), (order,), dims=x.n_dims)

    def top_k(self, x: Tensor, k: int) -> Tensor:
        """Give the places of the `k` largest elements of each row, in no order: [k, ...] I32."""
        return self._add(_TOP_K, I32, (k, *x.ne[1:]), (x,), dims=x.n_dims)
