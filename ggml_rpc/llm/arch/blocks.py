"""Parts that architectures are made of: norms, linear maps, rotary positions, attention, feed-forward parts, experts.

Nodes are those of stock llama.cpp's graphs, in their order of operations, so that numbers agree. Shapes are `ne`:
dimension 0 first. T is the number of tokens in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ggml_rpc.spec.enums import GluKind

if TYPE_CHECKING:
    from ggml_rpc.client.device import Device
    from ggml_rpc.graph._tensor import Tensor
    from ggml_rpc.graph.builder import Graph

    from ..hparams import HParams

_SMALLEST_F16 = 6.103515625e-05  # the smallest normal half: keeps the sum of experts' weights from being 0


@dataclass(frozen=True, slots=True)
class CacheInputs:
    """What the layers that share one kind of cache read: where rows are written and which are seen.

    Attributes
    ----------
    n_kv : int
        Cells that take part.
    k_rows, v_rows : Tensor
        I64 rows that K and V are written to; V's are elements if it lies transposed.
    mask : Tensor
        [n_kv, T or more], 0 or minus infinity; F16 with flash attention, else F32.
    """

    n_kv: int
    k_rows: Tensor
    v_rows: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's part of the cache.

    Attributes
    ----------
    k, v : Tensor
        [n_embd_k, n_cells] and [n_embd_v, n_cells]; without flash attention V's memory is [n_cells, n_embd_v].
    rotate_k, rotate_v : Tensor or None
        Orthonormal symmetric matrices that spread outliers before quantised rows are stored.
    """

    k: Tensor
    v: Tensor
    rotate_k: Tensor | None = None
    rotate_v: Tensor | None = None


class Blocks:
    """Nodes on one device, with the weights of one part of the model.

    Parameters
    ----------
    g : Graph
        Where nodes go.
    hp : HParams
        The model's settings.
    weights : Mapping of str to Tensor
        Weights of this part by name (`attn_q.weight`).
    device : Device
        Where nodes without weights are to run.
    """

    def __init__(self, g: Graph, hp: HParams, weights: Mapping[str, Tensor], device: Device) -> None:
        self.g = g
        self.hp = hp
        self.w = weights
        self.device = device

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Return the RMS norm of rows, multiplied by a weight."""
        return self.g.mul(self.g.rms_norm(x, self.hp.eps), self.w[name + ".weight"])

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Return a matrix times x, plus its bias if the file has one."""
        return self.biased(self.g.mul_mat(self.w[name + ".weight"], x), name)

    def biased(self, x: Tensor, name: str) -> Tensor:
        """Return x plus a bias if the file has it."""
        bias = self.w.get(name + ".bias")
        return x if bias is None else self.g.add(x, bias)

    def soft_cap(self, x: Tensor, cap: float) -> Tensor:
        """Return cap * tanh(x / cap); x itself for a cap of 0."""
        if cap == 0:
            return x
        return self.g.scale(self.g.tanh(self.g.scale(x, 1.0 / cap)), cap)

    def gated(self, gate: Tensor, up: Tensor | None, kind: Gate) -> Tensor:
        """Return activation(gate) * up; without `up` the first half of each row is the gate.

        Devices that do not know the fused op get the two it stands for.
        """
        g = self.g
        if self.device.speaks("GLU", "glu", _GATES[kind]):
            return g.swiglu(gate, up) if kind == "silu" else g.geglu(gate, up)
        if up is None:
            half = gate.ne[0] // 2
            size = (half, gate.ne[1])
            gate, up = (g.cont(g.view(gate, size, nb=(gate.nb[1],), offset=i * half * gate.nb[0])) for i in (0, 1))
        return g.mul(g.silu(gate) if kind == "silu" else g.gelu(gate), up)


Gate = Literal["silu", "gelu"]
"""Activation of a gated feed-forward part."""

_GATES: dict[Gate, GluKind] = {"silu": GluKind.SWIGLU, "gelu": GluKind.GEGLU}


class LayerGraph(Blocks):
    """The graph of one layer.

    Parameters
    ----------
    g, hp, weights, device
        See `Blocks`.
    il : int
        The layer.
    positions : Tensor
        I32 [T].
    inputs : CacheInputs
        Of the layer's kind of cache.
    cache : LayerCache
        The layer's own.
    flash : bool
        Use FLASH_ATTN_EXT.
    factors : Tensor or None
        F32 [n_dims / 2]: what the frequencies of positions are divided by.
    wanted : Tensor or None
        In the last layer: I32 rows that the head needs; None: all.
    """

    def __init__(
        self,
        g: Graph,
        hp: HParams,
        weights: Mapping[str, Tensor],
        device: Device,
        *,
        il: int,
        positions: Tensor,
        inputs: CacheInputs,
        cache: LayerCache,
        flash: bool,
        factors: Tensor | None,
        wanted: Tensor | None,
    ) -> None:
        super().__init__(g, hp, weights, device)
        self.il = il
        self._positions = positions
        self._inputs = inputs
        self._cache = cache
        self._flash = flash
        self._factors = factors
        self._wanted = wanted

    def rows_wanted(self, x: Tensor) -> Tensor:
        """Return those rows of the last layer that the head needs; x itself in the other layers."""
        return x if self._wanted is None else self.g.get_rows(x, self._wanted)

    # ---- Attention -----------------------------------------------------------------------------------------------

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [head_dim, heads, T], from one matrix or three."""
        hp, il = self.hp, self.il
        heads = ((hp.head_dim_k, hp.n_head[il]), (hp.head_dim_k, hp.n_head_kv[il]), (hp.head_dim_v, hp.n_head_kv[il]))
        n_tokens = x.ne[1]
        if "attn_qkv.weight" in self.w:
            fused = self.linear(x, "attn_qkv")
            parts = []
            at = 0
            for dim, n in heads:
                row = fused.nb[0] * dim
                parts.append(self.g.view(fused, (dim, n, n_tokens), nb=(row, fused.nb[1]), offset=at))
                at += row * n
            q, k, v = parts
        else:
            names = ("attn_q", "attn_k", "attn_v")
            q, k, v = (
                self.g.reshape(self.linear(x, name), dim, n, n_tokens)
                for name, (dim, n) in zip(names, heads, strict=True)
            )
        return q, k, v

    def rope(self, x: Tensor) -> Tensor:
        """Return heads turned by their positions."""
        r, windowed = self.hp.rope, self.hp.windowed[self.il]
        return self.g.rope(
            x,
            self._positions,
            self._factors,
            n_dims=r.n_dims,
            mode=r.mode,
            n_ctx_orig=r.n_ctx_orig,
            freq_base=r.base_windowed if windowed else r.base,
            freq_scale=r.scale_windowed if windowed else r.scale,
            ext_factor=r.ext_factor,
            attn_factor=r.attn_factor,
            beta_fast=r.beta_fast,
            beta_slow=r.beta_slow,
        )

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Store keys and values, and return what the queries find in the cache, through the output matrix.

        Parameters
        ----------
        q, k, v : Tensor
            [head_dim, heads, T].
        scale : float
            What the products of queries and keys are multiplied by.

        Returns
        -------
        Tensor
            [n_embd, T].
        """
        cache = self._cache
        if cache.rotate_k is not None:
            q, k = self._rotated(q, cache.rotate_k), self._rotated(k, cache.rotate_k)
        if cache.rotate_v is not None:
            v = self._rotated(v, cache.rotate_v)
        self._store(k, v)
        found = self._flash_attention(q, scale) if self._flash else self._plain_attention(q, scale)
        if cache.rotate_v is not None:
            found = self._rotated(found, cache.rotate_v)
        return self.linear(found, "attn_output")

    def _rotated(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Return x with each stretch of the matrix's length multiplied by it."""
        n = matrix.ne[0]
        whole = x if x.is_contiguous else self.g.cont(x)
        turned = self.g.mul_mat(matrix, self.g.reshape(whole, n, x.n_elements // n), hint="src0_is_hadamard")
        return self.g.reshape(turned, *x.ne)

    def _store(self, k: Tensor, v: Tensor) -> None:
        g, cache, inputs = self.g, self._cache, self._inputs
        g.set_rows(cache.k, self._flat(k, cache.k.ne[0]), inputs.k_rows)
        if self._flash:
            g.set_rows(cache.v, self._flat(v, cache.v.ne[0]), inputs.v_rows)
        else:
            # V lies transposed: each element is a row of its own.
            g.set_rows(g.reshape(cache.v, 1, cache.v.n_elements), self._flat(v, 1), inputs.v_rows)

    def _flat(self, x: Tensor, width: int) -> Tensor:
        """Return heads side by side in rows of the given width."""
        whole = x if x.is_contiguous else self.g.cont(x)
        return self.g.reshape(whole, width, x.n_elements // width)

    def _cached_heads(self, t: Tensor, dim: int) -> Tensor:
        """Return the cache's first rows as [dim, n_kv, heads]."""
        heads = t.ne[0] // dim
        row = t.nb[1] // heads
        return self.g.permute(self.g.view(t, (dim, heads, self._inputs.n_kv), nb=(row, t.nb[1])), 0, 2, 1, 3)

    def _flash_attention(self, q: Tensor, scale: float) -> Tensor:
        hp, g = self.hp, self.g
        found = g.flash_attn_ext(
            g.permute(q, 0, 2, 1, 3),
            self._cached_heads(self._cache.k, hp.head_dim_k),
            self._cached_heads(self._cache.v, hp.head_dim_v),
            self._inputs.mask,
            scale=scale,
            logit_softcap=hp.attention_cap,
            prec="f32",
        )
        return g.reshape(found, found.ne[0] * found.ne[1], found.ne[2])

    def _plain_attention(self, q: Tensor, scale: float) -> Tensor:
        hp, g, n_kv = self.hp, self.g, self._inputs.n_kv
        k, v = self._cached_heads(self._cache.k, hp.head_dim_k), self._cache.v
        scores = g.mul_mat(k, g.permute(q, 0, 2, 1, 3), prec="f32")
        weights = g.soft_max(self.soft_cap(scores, hp.attention_cap), self._inputs.mask, scale=scale)
        row = v.nb[0] * v.ne[1]  # one channel of all cells
        heads = v.ne[0] // hp.head_dim_v
        channels = g.permute(g.view(v, (n_kv, heads, hp.head_dim_v), nb=(row * hp.head_dim_v, row)), 0, 2, 1, 3)
        found = g.permute(g.mul_mat(channels, weights), 0, 2, 1, 3)
        return g.cont(found, (found.ne[0] * found.ne[1], found.ne[2]))

    # ---- Feed-forward --------------------------------------------------------------------------------------------

    def ffn(self, x: Tensor, kind: Gate = "silu") -> Tensor:
        """Return down(activation(gate(x)) * up(x)); a file without `ffn_gate` has both halves in `ffn_up`."""
        up = self.linear(x, "ffn_up")
        if "ffn_gate.weight" in self.w:
            return self.linear(self.gated(self.linear(x, "ffn_gate"), up, kind), "ffn_down")
        return self.linear(self.gated(up, None, kind), "ffn_down")

    def experts(self, x: Tensor) -> Tensor:
        """Return the sum of the best experts' outputs, weighted by their share of the router's probabilities."""
        g, hp = self.g, self.hp
        n, used, n_tokens = hp.n_expert, hp.n_expert_used, x.ne[1]
        probabilities = g.soft_max(self.linear(x, "ffn_gate_inp"))
        order = g.argsort(probabilities, "desc")
        ids = g.view(order, (used, n_tokens), nb=(order.nb[1],))
        shares = g.reshape(g.get_rows(g.reshape(probabilities, 1, n, n_tokens), ids), used, n_tokens)
        total = g.clamp(g.sum_rows(shares), _SMALLEST_F16, float("inf"))
        shares = g.reshape(g.div(shares, total), 1, used, n_tokens)
        row = g.reshape(x, x.ne[0], 1, n_tokens)
        up = g.mul_mat_id(self.w["ffn_up_exps.weight"], row, ids)
        gate = g.mul_mat_id(self.w["ffn_gate_exps.weight"], row, ids)
        down = g.mul_mat_id(self.w["ffn_down_exps.weight"], self.gated(gate, up, "silu"), ids)
        down = g.mul(down, shares)
        parts = [g.view(down, (down.ne[0], n_tokens), nb=(down.nb[2],), offset=i * down.nb[1]) for i in range(used)]
        total = parts[0]
        for part in parts[1:]:
            total = g.add(total, part)
        return total if used > 1 else g.cont(total)


class HeadGraph(Blocks):
    """The graph after the last layer."""

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [n_vocab, n_outputs], capped if the model says so."""
        return self.soft_cap(self.linear(x, "output"), self.hp.logit_cap)
