"""Methods of `Graph` for attention: positions, masks, softmax, fused forms."""

from __future__ import annotations

from collections.abc import Sequence

from ggml_rpc.spec.enums import Prec

from ._node import F32, Nodes, Op
from ._tensor import Tensor

_ROPE_PARAMS = (
    "n_dims mode n_ctx_orig freq_base freq_scale ext_factor attn_factor beta_fast beta_slow "
    "section0 section1 section2 section3 n_offs"
)
_ROPE, _ROPE_BACK = Op("ROPE", _ROPE_PARAMS), Op("ROPE_BACK", _ROPE_PARAMS)
_SOFT_MAX = Op("SOFT_MAX", "scale max_bias")
_DIAG_MASK_INF, _DIAG_MASK_ZERO = Op("DIAG_MASK_INF", "n_past"), Op("DIAG_MASK_ZERO", "n_past")
_FLASH_ATTN_EXT = Op("FLASH_ATTN_EXT", "scale max_bias logit_softcap prec n_kv_max")
_LIGHTNING_INDEXER = Op("LIGHTNING_INDEXER")
_NO_SECTIONS = (0, 0, 0, 0)


class AttentionOps(Nodes):
    """Attention and what belongs to it."""

    def rope(
        self,
        x: Tensor,
        pos: Tensor,
        freq_factors: Tensor | None = None,
        *,
        n_dims: int,
        mode: int = 0,
        n_ctx_orig: int = 0,
        freq_base: float = 10000.0,
        freq_scale: float = 1.0,
        ext_factor: float = 0.0,
        attn_factor: float = 1.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        sections: Sequence[int] = _NO_SECTIONS,
        n_offs: int = 0,
    ) -> Tensor:
        """Rotate pairs of elements by their token's position.

        Parameters
        ----------
        x : Tensor
            [head size, n_head, n_tokens, ...] F32 or F16.
        pos : Tensor
            [n_tokens] I32; four times as many where the mode has sections.
        freq_factors : Tensor, optional
            [n_dims / 2 or more] F32: divides the frequency of each pair.
        n_dims : int
            Elements of each head that turn.
        mode : int
            Which elements make a pair, one of `RopeMode`.
        n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow : int, float
            The model's scaling of positions, as YaRN names them.
        sections : sequence of int
            Pairs that follow each of the four kinds of positions, for modes that have sections.
        n_offs : int
            Elements at the start of each head that are passed over.
        """
        values = self._rope_values(
            _ROPE,
            (n_dims, mode, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow),
            sections,
            n_offs,
        )
        return self._like(_ROPE, x, (x, pos, freq_factors), values)

    def rope_back(
        self,
        grad: Tensor,
        pos: Tensor,
        freq_factors: Tensor | None = None,
        *,
        n_dims: int,
        mode: int = 0,
        n_ctx_orig: int = 0,
        freq_base: float = 10000.0,
        freq_scale: float = 1.0,
        ext_factor: float = 0.0,
        attn_factor: float = 1.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        sections: Sequence[int] = _NO_SECTIONS,
        n_offs: int = 0,
    ) -> Tensor:
        """Turn back what `rope` turned with the same parameters."""
        values = self._rope_values(
            _ROPE_BACK,
            (n_dims, mode, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow),
            sections,
            n_offs,
        )
        return self._like(_ROPE_BACK, grad, (grad, pos, freq_factors), values)

    def _rope_values(
        self, op: Op, values: tuple[float, ...], sections: Sequence[int], n_offs: int
    ) -> tuple[float, ...]:
        if len(sections) != 4:
            raise self._broken(op, f"sections {list(sections)}: four are needed")
        return (*values, *sections, n_offs)

    def soft_max(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        sinks: Tensor | None = None,
        *,
        scale: float = 1.0,
        max_bias: float = 0.0,
    ) -> Tensor:
        """Apply softmax to the rows of `scale * x + mask`.

        Parameters
        ----------
        x : Tensor
            [n_kv, n_tokens, n_head, ...] F32 without gaps.
        mask : Tensor, optional
            [n_kv, n_tokens or more, ...] F32 or F16, repeated over heads.
        sinks : Tensor, optional
            [n_head] F32: a logit for each head that takes its share and is dropped.
        scale : float
            Factor of `x`.
        max_bias : float
            Steepness of ALiBi: the mask is multiplied by a slope for each head; 0 for none.
        """
        return self._like(_SOFT_MAX, x, (x, mask, sinks), (scale, max_bias))

    def diag_mask_inf(self, x: Tensor, n_past: int) -> Tensor:
        """Put minus infinity where column > n_past + row."""
        return self._like(_DIAG_MASK_INF, x, (x,), (n_past,))

    def diag_mask_zero(self, x: Tensor, n_past: int) -> Tensor:
        """Put 0 where column > n_past + row."""
        return self._like(_DIAG_MASK_ZERO, x, (x,), (n_past,))

    def flash_attn_ext(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        sinks: Tensor | None = None,
        *,
        scale: float,
        max_bias: float = 0.0,
        logit_softcap: float = 0.0,
        prec: str | int = Prec.F32,
        n_kv_max: int = 0,
    ) -> Tensor:
        """Attend: softmax of the masked, scaled products of `q` and `k`, times `v`.

        Parameters
        ----------
        q : Tensor
            [head size, n_tokens, n_head, n_seq] F32.
        k, v : Tensor
            [head size, n_kv, n_head_kv, n_seq], any type that holds floats; `v` not transposed.
        mask : Tensor, optional
            [n_kv, n_tokens or more, ...] F16, repeated over heads.
        sinks : Tensor, optional
            [n_head] F32, as for `soft_max`.
        scale, max_bias : float
            As for `soft_max`.
        logit_softcap : float
            Scores are brought within plus and minus this by a hyperbolic tangent; 0 for not at all.
        prec : str or int
            How exactly to add up: a wish, one of `Prec`.
        n_kv_max : int
            A bound that `n_kv` will not exceed, 0 for none: a hint.

        Returns
        -------
        Tensor
            [head size of v, n_head, n_tokens, n_seq] F32: heads of a token follow each other.
        """
        _, n_tokens, n_head, n_seq = q.ne
        return self._add(
            _FLASH_ATTN_EXT,
            F32,
            (v.ne[0], n_head, n_tokens, n_seq),
            (q, k, v, mask, sinks),
            (scale, max_bias, logit_softcap, prec, n_kv_max),
            dims=max(3, q.n_dims),
        )

    def lightning_indexer(self, q: Tensor, k: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
        """Score positions for sparse attention: the weighted sum over heads of `relu(q . k)`, plus the mask.

        Parameters
        ----------
        q : Tensor
            [head size, n_head, n_tokens, n_seq] F32.
        k : Tensor
            [head size, 1, n_kv, n_seq], any type that holds floats.
        weights : Tensor
            [n_head, n_tokens, 1, n_seq] F32.
        mask : Tensor
            [n_kv, n_tokens, 1, ...] F16.

        Returns
        -------
        Tensor
            [n_kv, n_tokens, 1, n_seq] F32.
        """
        ne = (k.ne[2], q.ne[2], 1, q.ne[3])
        return self._add(_LIGHTNING_INDEXER, F32, ne, (q, k, weights, mask), dims=2)
