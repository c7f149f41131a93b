"""Weights of the parts that several architectures share, as `blocks` uses them."""

from __future__ import annotations

from collections.abc import Container, Iterator

from ..hparams import HParams
from .base import LayerWeight


def attention_weights(hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
    """Yield the matrices of queries, keys, values and the output; one matrix for the first three if the file has it."""
    q, k, v = hp.n_embd_q(il), hp.n_embd_k(il), hp.n_embd_v(il)
    if "attn_qkv.weight" in names:
        yield from _linear("attn_qkv", hp.n_embd, q + k + v)
    else:
        for name, width in (("attn_q", q), ("attn_k", k), ("attn_v", v)):
            yield from _linear(name, hp.n_embd, width)
    yield LayerWeight("attn_output.weight", (hp.head_dim_v * hp.n_head[il], hp.n_embd))


def head_norms(hp: HParams) -> Iterator[LayerWeight]:
    """Yield the norms of single heads' queries and keys."""
    yield LayerWeight("attn_q_norm.weight", (hp.head_dim_k,))
    yield LayerWeight("attn_k_norm.weight", (hp.head_dim_k,))


def dense_weights(hp: HParams, il: int, *, bias: bool = False) -> Iterator[LayerWeight]:
    """Yield a gated feed-forward part, with the biases that a file may have."""
    n_ff = hp.n_ff[il]
    for name, n_in, n_out in (
        ("ffn_gate", hp.n_embd, n_ff),
        ("ffn_up", hp.n_embd, n_ff),
        ("ffn_down", n_ff, hp.n_embd),
    ):
        yield LayerWeight(name + ".weight", (n_in, n_out))
        if bias:
            yield LayerWeight(name + ".bias", (n_out,), optional=True)


def expert_weights(hp: HParams) -> Iterator[LayerWeight]:
    """Yield the router and the experts."""
    n_embd, n_ff, n = hp.n_embd, hp.n_ff_expert, hp.n_expert
    yield LayerWeight("ffn_gate_inp.weight", (n_embd, n))
    yield LayerWeight("ffn_gate_exps.weight", (n_embd, n_ff, n))
    yield LayerWeight("ffn_up_exps.weight", (n_embd, n_ff, n))
    yield LayerWeight("ffn_down_exps.weight", (n_ff, n_embd, n))


def _linear(name: str, n_in: int, n_out: int) -> Iterator[LayerWeight]:
    yield LayerWeight(name + ".weight", (n_in, n_out))
    yield LayerWeight(name + ".bias", (n_out,), optional=True)
