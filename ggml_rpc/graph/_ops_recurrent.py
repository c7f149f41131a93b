"""Methods of `Graph` for recurrent layers and the residual streams of hyper-connections."""

from __future__ import annotations

from ._node import F32, Nodes, Op
from ._tensor import Tensor

_SSM_CONV, _SSM_SCAN = Op("SSM_CONV"), Op("SSM_SCAN", "n_snapshots")
_RWKV_WKV6, _RWKV_WKV7 = Op("RWKV_WKV6"), Op("RWKV_WKV7")
_GATED_LINEAR_ATTN = Op("GATED_LINEAR_ATTN", "scale")
_GATED_DELTA_NET = Op("GATED_DELTA_NET", "n_snapshots")
_DSV4_HC_COMB = Op("DSV4_HC_COMB", "eps n_iter")
_DSV4_HC_PRE, _DSV4_HC_POST = Op("DSV4_HC_PRE", "scale gated"), Op("DSV4_HC_POST")

_STREAMS = 4  # of DSV4_HC_COMB: the only number there is


class RecurrentOps(Nodes):
    """Recurrent layers. All tensors are F32 but for indices; states follow the values in one result."""

    def ssm_conv(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve each channel along its tokens.

        Parameters
        ----------
        x : Tensor
            [taps - 1 + n_tokens, channels, n_seq]: the state and the tokens.
        kernel : Tensor
            [taps, channels].

        Returns
        -------
        Tensor
            [channels, n_tokens, n_seq].
        """
        return self._add(_SSM_CONV, F32, (x.ne[1], x.ne[0] - kernel.ne[0] + 1, x.ne[2], 1), (x, kernel), dims=3)

    def ssm_scan(
        self,
        state: Tensor,
        x: Tensor,
        dt: Tensor,
        *,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        ids: Tensor,
        n_snapshots: int = 1,
    ) -> Tensor:
        """Run the selective scan of Mamba.

        Parameters
        ----------
        state : Tensor
            [d_state, head size, n_head, states or more].
        x : Tensor
            [head size, n_head, n_tokens, n_seq].
        dt : Tensor
            [n_head, n_tokens, n_seq]: steps, before softplus.
        a : Tensor
            [1 or d_state, n_head]: decay.
        b, c : Tensor
            [d_state, n_group, n_tokens, n_seq].
        ids : Tensor
            [n_seq] I32: the state of each sequence.
        n_snapshots : int
            States to keep of each sequence, the latest first. 0 counts as 1, for peers that do not know the word.

        Returns
        -------
        Tensor
            A vector: values in the shape of `x`, then the states.
        """
        d_state, dim, heads, _ = state.ne
        states = max(n_snapshots, 1) * d_state * dim * heads * ids.ne[0]
        return self._add(_SSM_SCAN, F32, (x.n_elements + states,), (state, x, dt, a, b, c, ids), (n_snapshots,))

    def rwkv_wkv6(self, k: Tensor, v: Tensor, r: Tensor, *, tf: Tensor, td: Tensor, state: Tensor) -> Tensor:
        """Run the recurrence of RWKV 6.

        Parameters
        ----------
        k, v, r, td : Tensor
            [head size, n_head, n_tokens].
        tf : Tensor
            [head size, n_head]: the bonus of the current token.
        state : Tensor
            [head size * head size * n_head, n_seq].

        Returns
        -------
        Tensor
            [head size * n_head, n_tokens + head size * n_seq]: values, then states.
        """
        return self._add(_RWKV_WKV6, F32, self._wkv_shape(k, state), (k, v, r, tf, td, state), dims=2)

    def rwkv_wkv7(self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, *, a: Tensor, b: Tensor, state: Tensor) -> Tensor:
        """Run the recurrence of RWKV 7: shapes and result as for `rwkv_wkv6`."""
        return self._add(_RWKV_WKV7, F32, self._wkv_shape(r, state), (r, w, k, v, a, b, state), dims=2)

    def gated_linear_attn(self, k: Tensor, v: Tensor, q: Tensor, g: Tensor, *, state: Tensor, scale: float) -> Tensor:
        """Run gated linear attention: shapes and result as for `rwkv_wkv6`, values times `scale`."""
        return self._add(_GATED_LINEAR_ATTN, F32, self._wkv_shape(k, state), (k, v, q, g, state), (scale,), dims=2)

    @staticmethod
    def _wkv_shape(k: Tensor, state: Tensor) -> tuple[int, int]:
        size, heads, tokens, _ = k.ne
        return size * heads, tokens + size * state.ne[1]

    def gated_delta_net(
        self, q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, state: Tensor, n_snapshots: int = 1
    ) -> Tensor:
        """Run the gated delta rule.

        Parameters
        ----------
        q, k : Tensor
            [size, heads, n_tokens, n_seq], repeated over heads and sequences of `v`.
        v : Tensor
            [size, n_head, n_tokens, n_seq].
        g : Tensor
            [1 or size, n_head, n_tokens, n_seq]: the gate, as a logarithm.
        beta : Tensor
            [1, n_head, n_tokens, n_seq].
        state : Tensor
            [size, size, n_head, n_seq].
        n_snapshots : int
            As for `ssm_scan`.

        Returns
        -------
        Tensor
            [size * n_head, n_tokens * n_seq + n_snapshots * size * n_seq]: values, then states.
        """
        size, heads, tokens, seqs = v.ne
        ne = (size * heads, tokens * seqs + max(n_snapshots, 1) * size * seqs)
        return self._add(_GATED_DELTA_NET, F32, ne, (q, k, v, g, beta, state), (n_snapshots,), dims=2)

    def dsv4_hc_comb(self, mixes: Tensor, scale: Tensor, base: Tensor, *, eps: float, n_iter: int) -> Tensor:
        """Make doubly stochastic matrices [4, 4, n_tokens] of `mixes` [24, n_tokens], `scale` [3] and `base` [24]."""
        ne = (_STREAMS, _STREAMS, mixes.ne[1], 1)
        return self._add(_DSV4_HC_COMB, F32, ne, (mixes, scale, base), (eps, n_iter), dims=3)

    def dsv4_hc_pre(self, x: Tensor, weights: Tensor, *, scale: float = 1.0, gated: bool = False) -> Tensor:
        """Sum the streams of `x` [n, streams, n_tokens] by `weights` [streams, n_tokens]; `gated`: one an element."""
        return self._add(_DSV4_HC_PRE, F32, (x.ne[0], x.ne[2], 1, 1), (x, weights), (scale, gated), dims=2)

    def dsv4_hc_post(self, x: Tensor, residual: Tensor, post: Tensor, comb: Tensor | None = None) -> Tensor:
        """Give `x` [n, n_tokens] back to the streams of `residual` [n, streams, n_tokens].

        Parameters
        ----------
        post : Tensor
            [streams, n_tokens]: weights of `x`.
        comb : Tensor, optional
            [streams, streams, n_tokens]: how streams mix.
        """
        return self._like(_DSV4_HC_POST, residual, (x, residual, post, comb))
