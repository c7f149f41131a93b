"""Methods of `Graph` for gradients, losses and optimisers."""

from __future__ import annotations

from collections.abc import Sequence

from ._node import F32, Nodes, Op
from ._tensor import Tensor

_SILU_BACK, _REPEAT_BACK = Op("SILU_BACK"), Op("REPEAT_BACK")
_RMS_NORM_BACK = Op("RMS_NORM_BACK", "eps")
_SOFT_MAX_BACK = Op("SOFT_MAX_BACK", "scale max_bias")
_CROSS_ENTROPY_LOSS = Op("CROSS_ENTROPY_LOSS")
_CROSS_ENTROPY_LOSS_BACK = Op("CROSS_ENTROPY_LOSS_BACK")
_OPT_STEP_ADAMW = Op("OPT_STEP_ADAMW")
_OPT_STEP_SGD = Op("OPT_STEP_SGD")
_FLASH_ATTN_BACK = Op("FLASH_ATTN_BACK", "masked")

_ADAMW_PARAMS, _SGD_PARAMS = 7, 2
_PART_BYTES = 16  # each part of FLASH_ATTN_BACK's result begins at a multiple


class GradientOps(Nodes):
    """Gradients, losses and optimisers. Not every peer has them; every server of this package does."""

    def silu_back(self, grad: Tensor, x: Tensor) -> Tensor:
        """Give the gradient of `silu` at `x`."""
        return self._like(_SILU_BACK, x, (grad, x))

    def rms_norm_back(self, grad: Tensor, x: Tensor, eps: float) -> Tensor:
        """Give the gradient of `rms_norm` at `x`."""
        return self._like(_RMS_NORM_BACK, x, (grad, x), (eps,))

    def soft_max_back(self, grad: Tensor, y: Tensor, *, scale: float = 1.0, max_bias: float = 0.0) -> Tensor:
        """Give the gradient of `soft_max` where its result is `y`."""
        return self._like(_SOFT_MAX_BACK, grad, (grad, y), (scale, max_bias))

    def repeat_back(self, x: Tensor, ne: Sequence[int]) -> Tensor:
        """Sum the repetitions of the shape `ne` in `x`."""
        return self._add(_REPEAT_BACK, x.type_id, ne, (x,), dims=len(ne))

    def cross_entropy_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the mean cross entropy of rows of logits against rows of probabilities: one element."""
        self._require(_CROSS_ENTROPY_LOSS, (logits.ne == labels.ne, "both sources must have one shape"))
        return self._add(_CROSS_ENTROPY_LOSS, logits.type_id, (1,), (logits, labels))

    def cross_entropy_loss_back(self, grad: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Give the gradient of `cross_entropy_loss` by the logits."""
        self._require(
            _CROSS_ENTROPY_LOSS_BACK,
            (grad.n_elements == 1, "source 0 must have one element"),
            (logits.ne == labels.ne, "sources 1 and 2 must have one shape"),
        )
        return self._like(_CROSS_ENTROPY_LOSS_BACK, logits, (grad, logits, labels))

    def opt_step_adamw(self, x: Tensor, grad: Tensor, m: Tensor, v: Tensor, params: Tensor) -> Tensor:
        """Change `x`, and its moments `m` and `v`, by a step of AdamW with seven `params` (F32); a view of `x`."""
        self._require(
            _OPT_STEP_ADAMW,
            (x.ne == grad.ne == m.ne == v.ne, "sources 0 to 3 must have one shape"),
            (params.type_id == F32 and params.n_elements == _ADAMW_PARAMS, "source 4 must have seven F32"),
        )
        return self._into(_OPT_STEP_ADAMW, x, (x, grad, m, v, params))

    def opt_step_sgd(self, x: Tensor, grad: Tensor, params: Tensor) -> Tensor:
        """Change `x` by a step of gradient descent with two `params` (F32); a view of `x`."""
        self._require(
            _OPT_STEP_SGD,
            (x.ne == grad.ne, "sources 0 and 1 must have one shape"),
            (params.type_id == F32 and params.n_elements == _SGD_PARAMS, "source 2 must have two F32"),
        )
        return self._into(_OPT_STEP_SGD, x, (x, grad, params))

    def flash_attn_back(self, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, *, masked: bool = False) -> Tensor:
        """Give the gradients of attention by `q`, `k` and transposed `v`, one behind the other in a vector."""
        size, tokens, heads, seqs = q.ne
        n_kv, kv_heads = k.ne[1], k.ne[2]
        self._require(
            _FLASH_ATTN_BACK,
            (k.ne == (size, n_kv, kv_heads, seqs), "k must have rows and sequences like q"),
            (v.ne == (n_kv, size, kv_heads, seqs), "v must be k transposed in shape"),
            (grad.ne == (size, tokens, heads, seqs), "the gradient must have the shape of q"),
            (kv_heads > 0 and heads % kv_heads == 0, "heads of k and v must repeat evenly over those of q"),
        )
        ne = sum(-(-4 * t.n_elements // _PART_BYTES) * _PART_BYTES for t in (q, k, v)) // 4
        return self._add(_FLASH_ATTN_BACK, F32, (ne,), (q, k, v, grad), (masked,))
