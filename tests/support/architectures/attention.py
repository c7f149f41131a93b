"""Decoders whose memory is a cache of keys and values."""

from __future__ import annotations

from .model import (
    ATTENTION,
    DENSE,
    FFN,
    HEAD,
    N_EMBD,
    N_EXPERT,
    N_FF,
    N_FF_EXPERT,
    N_HEAD,
    N_HEAD_KV,
    N_USED,
    N_VOCAB,
    QK_NORM,
    Shapes,
    TinyModel,
    experts,
    heads,
    mixture,
    sizes,
    table,
)

Q_RANK, KV_RANK = 64, 64  # low ranks of queries, and of keys and values
NOPE, ROPE = 32, 16  # parts of a head without and with a rotation
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_log_multiplier": 0.1,
}


def gemma3n() -> TinyModel:
    """Return a model of four streams that correct each other; its last layers read the cache of earlier ones."""
    n_layer, n_stream, rank, per_layer = 22, 4, 64, 256  # stock knows the last three only with these sizes

    def layer(_i: int) -> Shapes:
        return {
            **ATTENTION,
            **QK_NORM,
            "post_attention_norm": (N_EMBD,),
            **FFN,
            "post_ffw_norm": (N_EMBD,),
            "inp_gate": (N_EMBD, per_layer),
            "proj": (per_layer, N_EMBD),
            "post_norm": (N_EMBD,),
            "altup_correct_coef": (n_stream, n_stream),
            "altup_correct_scale": (N_EMBD,),
            "altup_predict_coef": (n_stream, n_stream * n_stream),
            "altup_router": (N_EMBD, n_stream),
            "altup_router_norm": (N_EMBD,),
            "laurel_l": (N_EMBD, rank),
            "laurel_r": (rank, N_EMBD),
            "laurel_post_norm": (N_EMBD,),
        }

    shapes = table(
        n_layer,
        layer,
        altup_proj=(N_EMBD, N_EMBD, n_stream - 1),
        altup_unembd_proj=(N_EMBD, N_EMBD, n_stream - 1),
        per_layer_token_embd=(per_layer * n_layer, N_VOCAB),
        per_layer_model_proj=(N_EMBD, per_layer * n_layer),
        per_layer_proj_norm=(per_layer,),
    )
    metadata = sizes(n_layer, **heads(attention__sliding_window=16, rope__freq_base=1e6))
    gains = {"embedding": N_EMBD**-0.5, "query": HEAD**-0.5, "branch": 0.6 * n_layer**-0.5}
    return TinyModel("gemma3n", "gemma3n", metadata, shapes, **gains)


def _latent(q_b: int, v: int, *, split: bool) -> Shapes:
    """Return the shapes of attention over a latent of low rank."""
    shapes: Shapes = {
        "attn_norm": (N_EMBD,),
        "attn_q_a": (N_EMBD, Q_RANK),
        "attn_q_a_norm": (Q_RANK,),
        "attn_q_b": (Q_RANK, q_b),
        "attn_kv_a_mqa": (N_EMBD, KV_RANK + ROPE),
        "attn_kv_a_norm": (KV_RANK,),
        "attn_output": (N_HEAD * v, N_EMBD),
    }
    if split:
        return {**shapes, "attn_k_b": (NOPE, KV_RANK, N_HEAD), "attn_v_b": (KV_RANK, v, N_HEAD)}
    return {**shapes, "attn_kv_b": (KV_RANK, N_HEAD * (NOPE + v))}


def _latent_keys(*, split: bool) -> dict[str, int]:
    keys = {
        "attention.head_count": N_HEAD,
        "attention.q_lora_rank": Q_RANK,
        "attention.kv_lora_rank": KV_RANK,
        "rope.dimension_count": ROPE,
    }
    if split:  # the cache holds the latent alone, as one head
        keys |= {"attention.head_count_kv": 1, "attention.key_length": KV_RANK + ROPE}
        keys |= {"attention.value_length": KV_RANK, "attention.key_length_mla": NOPE + ROPE}
        return {**keys, "attention.value_length_mla": HEAD}
    keys |= {"attention.head_count_kv": N_HEAD, "attention.key_length": NOPE + ROPE}
    return {**keys, "attention.value_length": HEAD}


def _deepseek(name: str, arch: str, *, split: bool, more: dict[str, float | int], indexer: Shapes) -> TinyModel:
    def layer(i: int) -> Shapes:
        attention = {**_latent(N_HEAD * (NOPE + ROPE), HEAD, split=split), **indexer, "ffn_norm": (N_EMBD,)}
        if i == 0:
            return {**attention, **DENSE}
        return {**attention, **mixture(shared=N_FF_EXPERT), "exp_probs_b.bias": (N_EXPERT,)}

    metadata = {
        **sizes(3),
        **_latent_keys(split=split),
        **experts(expert_shared_count=1, leading_dense_block_count=1),
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,  # sigmoid
        **YARN,
        **more,
    }
    return TinyModel(name, arch, metadata, table(3, layer))


def deepseek2() -> TinyModel:
    """Return a model of latent attention that is absorbed into the products, with experts in groups."""
    groups = {"expert_group_count": 4, "expert_group_used_count": 2}
    return _deepseek("deepseek2", "deepseek2", split=True, more=groups, indexer={})


def deepseek2_whole() -> TinyModel:
    """Return a model of latent attention as older files have it: keys and values are unpacked."""
    return _deepseek("deepseek2-whole", "deepseek2", split=False, more={}, indexer={})


def deepseek32() -> TinyModel:
    """Return a model of latent attention over the positions that an indexer picks."""
    n_head, size, top_k = 16, 64, 16  # fewer heads leave many scores that are all zero: ties
    keys = {"head_count": n_head, "key_length": size, "top_k": top_k}
    indexer: Shapes = {
        "indexer.k_norm": (size,),
        "indexer.k_norm.bias": (size,),
        "indexer.proj": (N_EMBD, n_head),
        "indexer.attn_k": (N_EMBD, size),
        "indexer.attn_q_b": (Q_RANK, n_head * size),
    }
    more = {f"attention.indexer.{key}": value for key, value in keys.items()}
    return _deepseek("deepseek32", "deepseek32", split=True, more=more, indexer=indexer)


def minicpm3() -> TinyModel:
    """Return a model of latent attention with scaled residuals and rotation factors."""

    def layer(_i: int) -> Shapes:
        return {**_latent(N_HEAD * (NOPE + ROPE), HEAD, split=False), **FFN}

    shapes = table(3, layer, rope_factors_long=(ROPE // 2,), rope_factors_short=(ROPE // 2,))
    return TinyModel("minicpm3", "minicpm3", {**sizes(3), **_latent_keys(split=False)}, shapes, embedding=1 / 12)


def gpt_oss() -> TinyModel:
    """Return a model of sinks, windows in every other layer, experts with biases and clamped gates."""

    def layer(_i: int) -> Shapes:
        biases: Shapes = {
            "attn_q.bias": (N_HEAD * HEAD,),
            "attn_k.bias": (N_HEAD_KV * HEAD,),
            "attn_v.bias": (N_HEAD_KV * HEAD,),
            "attn_output.bias": (N_EMBD,),
            "ffn_gate_inp.bias": (N_EXPERT,),
            "ffn_gate_exps.bias": (N_FF_EXPERT, N_EXPERT),
            "ffn_up_exps.bias": (N_FF_EXPERT, N_EXPERT),
            "ffn_down_exps.bias": (N_EMBD, N_EXPERT),
        }
        return {**ATTENTION, "attn_sinks": (N_HEAD,), "post_attention_norm": (N_EMBD,), **mixture(), **biases}

    metadata = sizes(4, **heads(attention__sliding_window=16), **experts())
    return TinyModel("gpt-oss", "gpt-oss", metadata, table(4, layer))


def deepseek4() -> TinyModel:
    """Return a model of four streams mixed anew for each token, over windows and over what compresses the positions."""
    streams, head, rank, groups, n_layer = 4, 128, 32, 2, 4
    width, mixes = streams * N_EMBD, (2 + streams) * streams
    ratios = (0, 4, 128, 4)
    index_heads, index_size = 16, 64  # a head and an index of one size would end stock's own client

    def compressor(name: str, size: int, ratio: int) -> Shapes:
        wide = (2 if ratio == 4 else 1) * size
        shapes: Shapes = {f"{name}_compressor_{part}": (N_EMBD, wide) for part in ("kv", "gate")}
        return {**shapes, f"{name}_compressor_ape": (wide, ratio), f"{name}_compressor_norm": (size,)}

    def layer(i: int) -> Shapes:
        shapes: Shapes = {
            "attn_norm": (N_EMBD,),
            "attn_sinks": (N_HEAD,),
            "attn_q_a": (N_EMBD, Q_RANK),
            "attn_q_a_norm": (Q_RANK,),
            "attn_q_b": (Q_RANK, N_HEAD * head),
            "attn_kv": (N_EMBD, head),
            "attn_kv_a_norm": (head,),
            "attn_output_a": (N_HEAD * head // groups, rank * groups),
            "attn_output_b": (groups * rank, N_EMBD),
            "ffn_norm": (N_EMBD,),
            **mixture(shared=N_FF_EXPERT),
        }
        for part in ("attn", "ffn"):
            shapes |= {f"hc_{part}_fn": (width, mixes), f"hc_{part}_base": (mixes,), f"hc_{part}_scale": (3,)}
        if ratios[i]:
            shapes |= compressor("attn", head, ratios[i])
        if ratios[i] == 4:
            shapes |= {"indexer.proj": (N_EMBD, index_heads), "indexer.attn_q_b": (Q_RANK, index_heads * index_size)}
            shapes |= compressor("indexer", index_size, 4)
        if i == 0:  # experts by the token itself
            return {**shapes, "ffn_gate_tid2eid": (N_USED, N_VOCAB)}
        return {**shapes, "exp_probs_b.bias": (N_EXPERT,)}

    head_shapes = {"fn": (width, streams), "base": (streams,), "scale": (1,)}
    shapes = table(n_layer, layer, **{f"output_hc_{part}": shape for part, shape in head_shapes.items()})
    metadata = {
        **sizes(n_layer),
        **heads(attention__head_count_kv=1, attention__key_length=head, attention__value_length=head),
        **experts(expert_shared_count=1, expert_weights_scale=1.5, expert_weights_norm=True, expert_gating_func=4),
        "attention.q_lora_rank": Q_RANK,
        "attention.sliding_window": 16,
        "swiglu_clamp_exp": 7.0,
        "attention.indexer.head_count": index_heads,
        "attention.indexer.key_length": index_size,
        "attention.indexer.top_k": 4,
        "attention.output_group_count": groups,
        "attention.output_lora_rank": rank,
        "attention.compress_rope_freq_base": 160000.0,
        "attention.compress_ratios": ratios,
        "hyper_connection.count": streams,
        "hyper_connection.sinkhorn_iterations": 20,
        "hyper_connection.epsilon": 1e-6,
        "hash_layer_count": 1,
    }
    return TinyModel("deepseek4", "deepseek4", metadata, shapes)


def bloom() -> TinyModel:
    """Return a model whose scores fall with distance, by another slope for each head."""
    rows = {"attn_qkv": 3 * N_EMBD, "attn_output": N_EMBD, "ffn_up": N_FF}
    norms = ("attn_norm", "ffn_norm")

    def layer(_i: int) -> Shapes:
        shapes: Shapes = dict.fromkeys(norms, (N_EMBD,)) | {f"{name}.bias": (N_EMBD,) for name in norms}
        shapes |= {name: (N_EMBD, n) for name, n in rows.items()} | {f"{name}.bias": (n,) for name, n in rows.items()}
        return {**shapes, "ffn_down": (N_FF, N_EMBD), "ffn_down.bias": (N_EMBD,)}

    outer = ("token_embd_norm", "token_embd_norm.bias", "output_norm.bias")
    shapes = {**table(3, layer), **dict.fromkeys(outer, (N_EMBD,))}
    metadata = sizes(3, attention__head_count=N_HEAD, attention__layer_norm_epsilon=1e-5)
    return TinyModel("bloom", "bloom", metadata, shapes)
