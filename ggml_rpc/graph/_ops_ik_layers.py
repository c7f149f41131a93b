"""Methods of `Graph` for whole layers that only ik_llama.cpp has: positions, attention, recurrences, streams."""

from __future__ import annotations

from ggml_rpc.spec.enums import Prec

from ._node import F32, Nodes, Op
from ._tensor import Tensor

_ROPE_CACHE = Op(
    "ROPE_CACHE",
    "n_dims mode n_ctx_orig freq_base freq_scale ext_factor attn_factor beta_fast beta_slow",
)
_ROPE_FAST = Op("ROPE_FAST", "n_dims mode")
_LATENT_ATTN = Op("LATENT_ATTN", "scale max_bias dv offset mode")
_FLASH_ATTN_ROWS = Op("FLASH_ATTN_ROWS", "scale max_bias logit_softcap prec n_kv_max")
_DELTA_NET = Op("DELTA_NET", "repeat")
_IK_SSM_CONV, _IK_SSM_SCAN = Op("IK_SSM_CONV"), Op("IK_SSM_SCAN")
_SINKHORN = Op("SINKHORN", "n n_iter eps transpose")
_HC_PRE, _HC_POST = Op("HC_PRE", "n n_iter eps"), Op("HC_POST")
_DS4_COMP = Op("DS4_COMP", "kind")


class IkLayerOps(Nodes):
    """Layers that only peers of ik_llama.cpp have. Tensors are F32 unless a method says otherwise."""

    # ---- Positions and attention ----

    def rope_cache(
        self,
        pos: Tensor,
        freq_factors: Tensor | None = None,
        *,
        ne0: int,
        n_dims: int,
        mode: int = 0,
        n_ctx_orig: int = 0,
        freq_base: float = 10000.0,
        freq_scale: float = 1.0,
        ext_factor: float = 0.0,
        attn_factor: float = 1.0,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
    ) -> Tensor:
        """Compute the cosines and sines for `rope_fast`: [ne0, n_tokens], for heads of `ne0`; else as `rope`."""
        values = (n_dims, mode, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow)
        return self._add(_ROPE_CACHE, F32, (ne0, pos.ne[0]), (pos, freq_factors), values, dims=2)

    def rope_fast(self, x: Tensor, cache: Tensor, *, n_dims: int, mode: int = 0) -> Tensor:
        """Rotate `x` [head size, n_head, n_tokens] by a result of `rope_cache` with the same `n_dims` and `mode`."""
        return self._like(_ROPE_FAST, x, (x, cache), (n_dims, mode))

    def flash_attn_rows(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows: Tensor,
        *,
        mask: Tensor | None = None,
        sinks: Tensor | None = None,
        scale: float,
        max_bias: float = 0.0,
        logit_softcap: float = 0.0,
        prec: str | int = Prec.F32,
        n_kv_max: int = 0,
    ) -> Tensor:
        """Attend as `flash_attn_ext` does, to the rows of `k` and `v` alone that `rows` [n, n_tokens] I32 names.

        Rows below 0 are none. The list counts for one head of `k` and `v`, one sequence, and if it is shorter than `k`.
        """
        n_tokens, n_head, n_seq = q.ne[1:]
        return self._add(
            _FLASH_ATTN_ROWS,
            F32,
            (v.ne[0], n_head, n_tokens, n_seq),
            (q, k, v, mask, sinks, rows),
            (scale, max_bias, logit_softcap, prec, n_kv_max),
            dims=max(3, q.n_dims),
        )

    def latent_attn(
        self,
        q: Tensor,
        cache: Tensor,
        *,
        dv: int,
        offset: int = 0,
        scale: float,
        prefix_k: Tensor | None = None,
        prefix_v: Tensor | None = None,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Attend to a cache whose rows hold keys and, from `offset` on, `dv` elements of values.

        Parameters
        ----------
        q : Tensor
            [size, n_tokens, n_head].
        cache : Tensor
            [size, n_kv] of a type that holds floats; F32, F16 or Q8_0 for ik_llama.cpp's servers.
        prefix_k, prefix_v : Tensor, optional
            [size, n] and, transposed, [n, dv]: F32 or F16, seen by all tokens; both or none.
        mask : Tensor, optional
            [n_kv, n_tokens or more].
        ids : Tensor, optional
            [k, n_tokens or more] I32: the rows of the cache that each token sees.

        Returns
        -------
        Tensor
            [dv, n_tokens, n_head].
        """
        src = (q, cache, prefix_k, prefix_v, mask, ids)
        values = (scale, 0.0, dv, offset, ids is not None)
        return self._add(_LATENT_ATTN, F32, (dv, q.ne[1], q.ne[2], 1), src, values, dims=3)

    # ---- Recurrences ----

    def delta_net(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        g: Tensor,
        beta: Tensor,
        state: Tensor,
        states: Tensor | None = None,
        repeat: bool = False,
    ) -> Tensor:
        """Run the gated delta rule in ik_llama.cpp's layout.

        Parameters
        ----------
        q, k : Tensor
            [size, n_tokens, heads, n_seq]; heads are shared by those of `v`, neighbours or (`repeat`) in turns.
        v : Tensor
            [size, n_tokens, n_head, n_seq].
        g : Tensor
            [n_tokens, 1 or size, n_head, n_seq].
        beta : Tensor
            [1, n_tokens, n_head, n_seq].
        state : Tensor
            [size, size * n_head, 1, n_seq].
        states : Tensor, optional
            Filled with the states before the last token.

        Returns
        -------
        Tensor
            A vector: values in the shape of `v`, then the states.
        """
        src = (q, k, v, g, beta, state, states)
        return self._add(_DELTA_NET, F32, (v.n_elements + state.n_elements,), src, (repeat,))

    def ik_ssm_conv(
        self, state: Tensor, x: Tensor, kernel: Tensor, map: Tensor, states: Tensor | None = None
    ) -> Tensor:
        """Convolve channels along tokens.

        Parameters
        ----------
        state : Tensor
            [taps - 1, channels, n_seq].
        x : Tensor
            [channels, n_tokens].
        kernel : Tensor
            [taps, channels].
        map : Tensor
            [n_seq, n_tokens] I32: the sequences of each token.
        states : Tensor, optional
            Filled with the state behind each token, for one sequence.

        Returns
        -------
        Tensor
            A vector: [channels, n_tokens] values, then [taps, channels, n_seq] states.
        """
        taps, channels = kernel.ne[:2]
        n = channels * x.ne[1] + taps * channels * state.ne[2]
        return self._add(_IK_SSM_CONV, F32, (n,), (state, x, kernel, map, states))

    def ik_ssm_scan(
        self, state: Tensor, x: Tensor, dt: Tensor, *, a: Tensor, b: Tensor, c: Tensor, map: Tensor
    ) -> Tensor:
        """Run the selective scan of Mamba 1.

        Parameters
        ----------
        state : Tensor
            [d_state, channels, n_seq].
        x, dt : Tensor
            [channels, n_tokens].
        a : Tensor
            [d_state, channels].
        b, c : Tensor
            [d_state, n_tokens].
        map : Tensor
            As for `ik_ssm_conv`.

        Returns
        -------
        Tensor
            A vector: values in the shape of `x`, then the states.
        """
        return self._add(_IK_SSM_SCAN, F32, (x.n_elements + state.n_elements,), (state, x, dt, a, b, c, map))

    # ---- Streams ----

    def sinkhorn(self, x: Tensor, n: int, *, n_iter: int, eps: float, transpose: bool = False) -> Tensor:
        """Make the matrices in rows of `x` [n * n, n_tokens] doubly stochastic: [n, n, n_tokens]."""
        return self._add(_SINKHORN, F32, (n, n, x.ne[1], 1), (x,), (n, n_iter, eps, transpose), dims=3)

    def hc_pre(self, x: Tensor, scale: Tensor, bias: Tensor, *, n: int, n_iter: int, eps: float) -> Tensor:
        """Turn mixes `x` [n * n + 2n, n_tokens] of `n` streams into their weights, in a vector as long.

        `scale` is [3], `bias` [n * n + 2n].
        """
        width = n * n + 2 * n
        return self._add(_HC_PRE, F32, (width * x.ne[1],), (x, scale, bias), (n, n_iter, eps))

    def hc_post(self, x: Tensor, post: Tensor, residual: Tensor, comb: Tensor) -> Tensor:
        """Give `x` [k, n_tokens] back to the streams of `residual` [k, n, n_tokens].

        `post` is [n, n_tokens], `comb` [n, n, n_tokens].
        """
        k, tokens = x.ne[:2]
        n = post.ne[0]
        return self._add(_HC_POST, F32, (k, n, tokens, 1), (x, post, residual, comb), dims=3)

    def ds4_comp(self, state: Tensor, score: Tensor, ids: Tensor, *, ratio: int, kind: int) -> Tensor:
        """Compress rows of `state` [k, n] by their scores, `ratio` at a time that `ids` I32 lists.

        With `kind` 0 blocks overlap: each takes `2 * ratio` rows and half of their elements.
        """
        rows = ratio if kind else 2 * ratio
        self._require(
            _DS4_COMP,
            (ratio > 0, "ratio must be positive"),
            (ratio > 0 and ids.ne[0] % rows == 0, "source 2 must list whole blocks"),
        )
        k = state.ne[0] if kind else state.ne[0] // 2
        return self._add(_DS4_COMP, F32, (k, ids.ne[0] // rows), (state, score, ids), (kind,), dims=2)
