"""Methods of `Graph` for the smaller ops that only ik_llama.cpp has, or has in a form of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ggml_rpc.spec.enums import UnaryKind
from ggml_rpc.spec.limits import MAX_SRC
from ggml_rpc.spec.ops import OP_BY_NAME

from ._node import F32, I32, Nodes, Op
from ._tensor import Tensor

_FUSED_RMS_NORM, _FUSED_NORM = Op("FUSED_RMS_NORM", "eps"), Op("FUSED_NORM", "eps")
_FUSED_RMS_RMS_ADD = Op("FUSED_RMS_RMS_ADD", "eps")
_FUSED_MUL_UNARY = Op("FUSED_MUL_UNARY", "kind limit")
_MULTI_ADD, _MUL_MULTI_ADD = Op("MULTI_ADD", "n"), Op("MUL_MULTI_ADD")
_FUSED_UP_GATE, _MOE_FUSED_UP_GATE = Op("FUSED_UP_GATE", "kind limit"), Op("MOE_FUSED_UP_GATE", "kind limit")
_HADAMARD = Op("HADAMARD", "n")
_ARGSORT_THRESH = Op("ARGSORT_THRESH", "min_entries threshold")
_GROUPED_TOPK = Op("GROUPED_TOPK", "groups top_groups n_best")
_SOFTCAP = Op("SOFTCAP", "before after")
_SOFT_CAP_MAX = Op("SOFT_CAP_MAX", "scale max_bias before after")
_REDUCE = Op("REDUCE", "kind n present", has_rules=False)
_FAKE_CPY = Op("FAKE_CPY", has_rules=False)
_BLEND = Op("BLEND", "value")
_INDEXER_TOPK = Op("INDEXER_TOPK", "kind")
_MASK_TOPK, _MASK_TO_IDX = Op("MASK_TOPK"), Op("MASK_TO_IDX")
_SUM_DIM = Op("SUM_DIM", "dim")
_GATHER = Op("GATHER")

_ADD = OP_BY_NAME["ADD"].id  # the number of the sum in REDUCE, which is ik_llama.cpp's own number of ADD too


class IkOps(Nodes):
    """What only peers of ik_llama.cpp have. `x` is F32 unless a method says otherwise."""

    # ---- Norms ----

    def fused_rms_norm(self, x: Tensor, weight: Tensor | None = None, *, eps: float) -> Tensor:
        """Apply `rms_norm` and multiply rows by `weight` [k] F32."""
        return self._like(_FUSED_RMS_NORM, x, (x, weight), (eps,))

    def fused_norm(self, x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        """Apply `norm` and multiply rows by `weight` [k] F32."""
        return self._like(_FUSED_NORM, x, (x, weight), (eps,))

    def fused_rms_rms_add(self, a: Tensor, weight_a: Tensor, b: Tensor, weight_b: Tensor, *, eps: float) -> Tensor:
        """Add two results of `fused_rms_norm`; `a` and `b` are F32, F16 or BF16, the result F32."""
        return self._add(_FUSED_RMS_RMS_ADD, F32, a.ne, (a, weight_a, b, weight_b), (eps,), dims=a.n_dims)

    # ---- Element by element ----

    def fused_mul_unary(self, gate: Tensor, x: Tensor, kind: str | int, *, limit: float = 0.0) -> Tensor:
        """Multiply `x` by an activation ("silu", "gelu", "relu") of `gate`, or of one element of it for each row."""
        return self._like(_FUSED_MUL_UNARY, x, (gate, x), (kind, limit))

    def softcap(self, x: Tensor, before: float, after: float) -> Tensor:
        """Compute `after * tanh(before * x)`."""
        return self._like(_SOFTCAP, x, (x,), (before, after))

    def soft_cap_max(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        before: float,
        after: float,
        scale: float = 1.0,
        max_bias: float = 0.0,
    ) -> Tensor:
        """Apply `softcap`, then `soft_max`."""
        return self._like(_SOFT_CAP_MAX, x, (x, mask), (scale, max_bias, before, after))

    def hadamard(self, x: Tensor, n: int) -> Tensor:
        """Apply the Walsh-Hadamard transform to each `n` elements of rows of any type that holds floats."""
        return self._add(_HADAMARD, F32, x.ne, (x,), (n,), dims=x.n_dims)

    def blend(self, x: Tensor, ids: Tensor, value: float) -> Tensor:
        """Put `value` where `ids` [m, ...] (I32, I64) names the place in the row of `x` (F32, F16, BF16)."""
        return self._like(_BLEND, x, (x, ids), (value,))

    # ---- Sums ----

    def multi_add(self, x: Tensor, n: int) -> Tensor:
        """Sum `n` rows that begin with each row of `x`, a view of the first of them."""
        return self._like(_MULTI_ADD, x, (x,), (n,))

    def mul_multi_add(
        self, x: Tensor, weights: Tensor, scale: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        """Sum the rows of each matrix of `x` [k, m, n] by `weights` [1, m, n]: [k, n].

        With `scale` [n_expert] F32 and `ids` [m, n] I32 each row's weight is multiplied by its expert's scale.
        """
        return self._add(_MUL_MULTI_ADD, F32, (x.ne[0], x.ne[2], 1, 1), (x, weights, scale, ids), dims=2)

    def sum_dim(self, x: Tensor, dim: int) -> Tensor:
        """Sum along dimension 1, 2 or 3."""
        if not 1 <= dim <= 3:
            raise self._broken(_SUM_DIM, f"dim must be 1 to 3, not {dim}: sum_rows sums along dimension 0")
        ne = list(x.ne)
        ne[dim] = 1
        return self._add(_SUM_DIM, x.type_id, ne, (x,), (dim,), dims=x.n_dims)

    def reduce(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Sum 2 to 16 tensors of one shape, which lie on several devices, into each of them; a view of the last."""
        present = [t for t in parts if t is not None]
        self._require(
            _REDUCE,
            (len(parts) <= MAX_SRC and len(present) > 1, "2 to 16 parts are needed"),
            (all(t.ne == present[0].ne for t in present), "all parts must have one shape"),
        )
        return self._into(_REDUCE, present[-1], tuple(parts), (_ADD, len(parts), len(present)))

    def fake_cpy(self, dst: Tensor, x: Tensor) -> Tensor:
        """Stand for `dst` behind the work that `x` needs; nothing is copied."""
        return self._into(_FAKE_CPY, dst, (dst, x))

    # ---- Products with gates ----

    def fused_up_gate(
        self, up: Tensor, gate: Tensor, x: Tensor, kind: str | int = UnaryKind.SILU, *, limit: float = 0.0
    ) -> Tensor:
        """Multiply `mul_mat(up, x)` by an activation of `mul_mat(gate, x)`."""
        return self._add(_FUSED_UP_GATE, F32, (up.ne[1], x.ne[1], 1, 1), (up, gate, x), (kind, limit), dims=x.n_dims)

    def moe_fused_up_gate(
        self,
        up: Tensor,
        gate: Tensor | None,
        x: Tensor,
        ids: Tensor,
        *,
        kind: str | int = UnaryKind.SILU,
        up_bias: Tensor | None = None,
        gate_bias: Tensor | None = None,
        limit: float = 0.0,
    ) -> Tensor:
        """Do what `fused_up_gate` does with the experts that `ids` names, as `mul_mat_id` takes them.

        Without `gate` each matrix of `up` holds both, the gate's half first. Biases are [m, n_expert] F32.
        """
        m = up.ne[1] if gate is not None else up.ne[1] // 2
        src = (up, gate, x, ids, up_bias, gate_bias)
        return self._add(_MOE_FUSED_UP_GATE, F32, (m, ids.ne[0], x.ne[2], 1), src, (kind, limit), dims=3)

    # ---- Choice ----

    def grouped_topk(self, x: Tensor, k: int, *, groups: int, top_groups: int, n_best: int) -> Tensor:
        """Give the places of the `k` largest elements of each row within its `top_groups` best of `groups` groups.

        A group is as good as the sum of its `n_best` largest elements. The result is [k, ...] I32.
        """
        ne = (k, *x.ne[1:])
        return self._add(_GROUPED_TOPK, I32, ne, (x,), (groups, top_groups, n_best), dims=x.n_dims)

    def argsort_thresh(self, x: Tensor, min_entries: int, threshold: float) -> Tensor:
        """Sort as `argsort` does, but name no place below `threshold` of the largest beyond `min_entries`."""
        return self._add(_ARGSORT_THRESH, I32, x.ne, (x,), (min_entries, threshold), dims=x.n_dims)

    def gather(self, x: Tensor, ids: Tensor) -> Tensor:
        """Fetch elements of each row of `x` [k, ...], of a plain type, by `ids` [m, ...] I32: [m, ...]."""
        return self._add(_GATHER, x.type_id, (ids.ne[0], *x.ne[1:]), (x, ids), dims=x.n_dims)

    def indexer_topk(
        self, k: Tensor, q: Tensor, weights: Tensor, mask: Tensor, *, kind: str | int = UnaryKind.RELU, n: int
    ) -> Tensor:
        """Give the `n` places that an indexer scores highest.

        Parameters
        ----------
        k : Tensor
            [size, n_kv].
        q : Tensor
            [size, n_head, n_tokens].
        weights : Tensor
            [n_head, n_tokens].
        mask : Tensor
            [n_kv, n_tokens].

        Returns
        -------
        Tensor
            [n, n_tokens] I32.
        """
        return self._add(_INDEXER_TOPK, I32, (n, q.ne[2]), (k, q, weights, mask), (kind,), dims=2)

    def mask_topk(self, mask: Tensor, ids: Tensor) -> Tensor:
        """Mask every place that `ids` [k, n_tokens, ...] I32 does not name."""
        return self._like(_MASK_TOPK, mask, (mask, ids))

    def mask_to_idx(self, mask: Tensor, n: int) -> Tensor:
        """List the places of each row that are not masked, at most `n`: I32."""
        ne = (min(mask.ne[0], n), *mask.ne[1:])
        return self._add(_MASK_TO_IDX, I32, ne, (mask,), dims=mask.n_dims)
