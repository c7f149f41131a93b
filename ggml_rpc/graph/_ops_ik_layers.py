"""Methods of `Graph` for whole layers that only ik_llama.cpp has: positions, attention, recurrences, streams."""

from __future__ import annotations

from ggml_rpc.spec.enums import Prec

from ._node import F16, F32, I32, Nodes, Op
from ._tensor import Tensor

_ROPE_CACHE = Op(
    "ROPE_CACHE",
    "n_dims mode n_ctx_orig freq_base freq_scale ext_factor attn_factor beta_fast beta_slow",
    has_rules=False,
)
_ROPE_FAST = Op("ROPE_FAST", "n_dims mode", has_rules=False)
_LATENT_ATTN = Op("LATENT_ATTN", "scale max_bias dv offset mode", has_rules=False)
_FLASH_ATTN_ROWS = Op("FLASH_ATTN_ROWS", "scale max_bias logit_softcap prec n_kv_max", has_rules=False)
_DELTA_NET = Op("DELTA_NET", "repeat")
_IK_SSM_CONV, _IK_SSM_SCAN = Op("IK_SSM_CONV"), Op("IK_SSM_SCAN")
_SINKHORN = Op("SINKHORN", "n n_iter eps transpose", has_rules=False)
_HC_PRE, _HC_POST = Op("HC_PRE", "n n_iter eps", has_rules=False), Op("HC_POST", has_rules=False)
_DS4_COMP = Op("DS4_COMP", "kind", has_rules=False)


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
        self._require(
            _ROPE_CACHE,
            (pos.type_id == I32 and pos.ne[1:] == (1, 1, 1), "source 0 (positions) must be a vector of I32"),
            (0 < n_dims <= ne0 and n_dims % 2 == 0, "n_dims must be even, positive and not above ne0"),
            (
                freq_factors is None or (freq_factors.type_id == F32 and freq_factors.ne[0] >= n_dims // 2),
                "source 1 (frequency factors) must have an F32 for each pair",
            ),
        )
        values = (n_dims, mode, n_ctx_orig, freq_base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow)
        return self._add(_ROPE_CACHE, F32, (ne0, pos.ne[0]), (pos, freq_factors), values, dims=2)

    def rope_fast(self, x: Tensor, cache: Tensor, *, n_dims: int, mode: int = 0) -> Tensor:
        """Rotate `x` [head size, n_head, n_tokens] by a result of `rope_cache` with the same `n_dims` and `mode`."""
        self._require(
            _ROPE_FAST,
            (x.type_id == cache.type_id == F32, "sources must be F32"),
            (x.ne[0] <= cache.ne[0] and x.ne[2] <= cache.ne[1], "the cache must cover heads and tokens of source 0"),
        )
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
        """Attend as `flash_attn_ext` does, to the `rows` (I32) of `k` and `v` alone."""
        size, n_tokens, n_head, n_seq = q.ne
        self._require(
            _FLASH_ATTN_ROWS,
            (rows.type_id == I32, "source 5 (rows) must be I32"),
            (k.ne[0] == size, "rows of q and k must have the same length"),
            (k.ne[1] == v.ne[1], "k and v must have as many rows"),
        )
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
            [size, n_kv] F32, F16 or Q8_0.
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
        size, n_kv = cache.ne[:2]
        self._require(
            _LATENT_ATTN,
            (q.type_id == F32 and q.is_contiguous and q.ne[3] == 1, "source 0 (q) must be contiguous F32"),
            (q.ne[0] == size and cache.ne[2:] == (1, 1), "the cache must be a matrix with rows like those of q"),
            (dv > 0 <= offset and offset + dv <= size, "values must lie inside the rows of the cache"),
            ((prefix_k is None) == (prefix_v is None), "the prefixes must come together"),
            (
                mask is None or (mask.type_id == F32 and mask.ne[0] == n_kv and mask.ne[1] >= q.ne[1]),
                "the mask must be F32 in the shape of the scores",
            ),
            (
                ids is None or (ids.type_id == I32 and ids.is_contiguous and ids.ne[1] >= q.ne[1]),
                "source 5 (ids) must have a list of I32 for each token",
            ),
        )
        if prefix_k is not None and prefix_v is not None:
            self._require(
                _LATENT_ATTN,
                (prefix_k.type_id in (F16, F32) and prefix_v.type_id in (F16, F32), "prefixes must be F32 or F16"),
                (prefix_k.is_contiguous and prefix_v.is_contiguous, "prefixes must be contiguous"),
                (prefix_k.ne[0] == size, "rows of source 2 (prefix_k) must be like those of q"),
                (prefix_v.ne[:2] == (prefix_k.ne[1], dv), "source 3 (prefix_v) must be values, transposed"),
            )
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
        self._require(
            _SINKHORN,
            (1 <= n <= 8, "n must be 1 to 8"),
            (x.type_id == F32 and x.is_contiguous, "the source must be contiguous F32"),
            (x.ne[0] == n * n and x.ne[2:] == (1, 1), "rows of the source must be n * n long, in two dimensions"),
            (n_iter >= 1 and eps >= 0, "n_iter must be positive, eps not negative"),
        )
        return self._add(_SINKHORN, F32, (n, n, x.ne[1], 1), (x,), (n, n_iter, eps, transpose), dims=3)

    def hc_pre(self, x: Tensor, scale: Tensor, bias: Tensor, *, n: int, n_iter: int, eps: float) -> Tensor:
        """Turn mixes `x` [n * n + 2n, n_tokens] of `n` streams into their weights, in a vector as long.

        `scale` is [3], `bias` [n * n + 2n].
        """
        width = n * n + 2 * n
        self._require(
            _HC_PRE,
            (x.type_id == scale.type_id == bias.type_id == F32, "sources must be F32"),
            (x.ne[0] == width and x.ne[2:] == (1, 1) and x.is_contiguous, f"rows of source 0 must be {width} long"),
            (scale.ne == (3, 1, 1, 1) and bias.ne == (width, 1, 1, 1), f"scale must be 3 long, bias {width}"),
        )
        return self._add(_HC_PRE, F32, (width * x.ne[1],), (x, scale, bias), (n, n_iter, eps))

    def hc_post(self, x: Tensor, post: Tensor, residual: Tensor, comb: Tensor) -> Tensor:
        """Give `x` [k, n_tokens] back to the streams of `residual` [k, n, n_tokens].

        `post` is [n, n_tokens], `comb` [n, n, n_tokens].
        """
        k, tokens = x.ne[:2]
        n = post.ne[0]
        self._require(
            _HC_POST,
            (x.type_id == post.type_id == residual.type_id == comb.type_id == F32, "sources must be F32"),
            (x.ne[2:] == (1, 1), "source 0 must have two dimensions"),
            (post.ne == (n, tokens, 1, 1), "source 1 (post) must have a weight for each stream and token"),
            (residual.ne == (k, n, tokens, 1), "source 2 (residual) must have the streams of each token"),
            (comb.ne == (n, n, tokens, 1), "source 3 (comb) must have a matrix for each token"),
        )
        return self._add(_HC_POST, F32, (k, n, tokens, 1), (x, post, residual, comb), dims=3)

    def ds4_comp(self, state: Tensor, score: Tensor, ids: Tensor, *, ratio: int, kind: int) -> Tensor:
        """Compress rows of `state` [k, n] by their scores, `ratio` at a time that `ids` I32 lists.

        With `kind` 0 blocks overlap: each takes `2 * ratio` rows and half of their elements.
        """
        rows = ratio if kind else 2 * ratio
        self._require(
            _DS4_COMP,
            (ratio > 0, "ratio must be positive"),
            (
                state.type_id == score.type_id == F32 and state.ne == score.ne,
                "state and score must be F32 of one shape",
            ),
            (state.ne[2:] == (1, 1), "the state must have two dimensions"),
            (state.ne[0] % (32 if kind else 64) == 0, "rows of the state must be a multiple of 32, for kind 0 of 64"),
            (ids.type_id == I32 and ids.ne[1:] == (1, 1, 1), "source 2 (ids) must be a vector of I32"),
            (ratio > 0 and ids.ne[0] % rows == 0, "source 2 must list whole blocks"),
        )
        k = state.ne[0] if kind else state.ne[0] // 2
        return self._add(_DS4_COMP, F32, (k, ids.ne[0] // rows), (state, score, ids), (kind,), dims=2)
