"""Decoders whose memory is a state of fixed size, alone or beside attention."""

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
    QK_NORM,
    UNNAMED,
    Shapes,
    TinyModel,
    experts,
    heads,
    mixture,
    sizes,
    table,
)

CONV, INNER, STATE = 4, 2 * N_EMBD, 32
RANK = 32  # of the time step
SSM_HEADS, SSM_GROUPS = 8, 2
WKV_HEAD = 64  # stock's kernels read past the end of shorter ones
ONE_OF_THREE = (0, N_HEAD_KV, 0)  # heads of a hybrid's layers: where there are none, a state

MAMBA: Shapes = {
    "attn_norm": (N_EMBD,),
    "ssm_in": (N_EMBD, 2 * INNER),
    "ssm_conv1d": (CONV, INNER),
    "ssm_conv1d.bias": (INNER,),
    "ssm_x": (INNER, RANK + 2 * STATE),
    "ssm_dt": (RANK, INNER),
    "ssm_dt.bias": (INNER,),
    "ssm_a": (STATE, INNER),
    "ssm_d": (INNER,),
    "ssm_out": (INNER, N_EMBD),
}
_CONVOLVED = INNER + 2 * SSM_GROUPS * STATE
MAMBA2: Shapes = {
    "attn_norm": (N_EMBD,),
    "ssm_in": (N_EMBD, INNER + _CONVOLVED + SSM_HEADS),
    "ssm_conv1d": (CONV, _CONVOLVED),
    "ssm_conv1d.bias": (_CONVOLVED,),
    "ssm_dt.bias": (SSM_HEADS,),
    "ssm_a": (1, SSM_HEADS),
    "ssm_d": (1, SSM_HEADS),
    "ssm_norm": (INNER // SSM_GROUPS, SSM_GROUPS),
    "ssm_out": (INNER, N_EMBD),
}


def _ssm(rank: int, groups: int = 0) -> dict[str, int]:
    keys = {"ssm.conv_kernel": CONV, "ssm.inner_size": INNER, "ssm.state_size": STATE, "ssm.time_step_rank": rank}
    return {**keys, "ssm.group_count": groups} if groups else keys


def mamba() -> TinyModel:
    """Return a model of selective scans."""
    metadata = {**sizes(3, attention__head_count=0), **_ssm(RANK), "feed_forward_length": 0}
    return TinyModel("mamba", "mamba", metadata, table(3, lambda _i: MAMBA))


def mamba2() -> TinyModel:
    """Return a model of selective scans by heads."""
    metadata = {**sizes(3, attention__head_count=0), **_ssm(SSM_HEADS, SSM_GROUPS), "feed_forward_length": 0}
    return TinyModel("mamba2", "mamba2", metadata, table(3, lambda _i: MAMBA2))


def jamba() -> TinyModel:
    """Mix scans, attention without positions, experts in one layer of three."""
    norms: Shapes = {"ssm_dt_norm": (RANK,), "ssm_b_norm": (STATE,), "ssm_c_norm": (STATE,)}

    def layer(i: int) -> Shapes:
        mixer = ATTENTION if ONE_OF_THREE[i] else {**MAMBA, **norms}
        return {**mixer, "ffn_norm": (N_EMBD,), **(mixture(N_FF) if i == 1 else DENSE)}

    metadata = {**sizes(3), **heads(attention__head_count_kv=ONE_OF_THREE), **experts(), **_ssm(RANK)}
    return TinyModel("jamba", "jamba", metadata, table(3, layer))


def granite_hybrid() -> TinyModel:
    """Mix scans by heads, attention, shared and routed experts, scaled streams."""

    def layer(i: int) -> Shapes:
        mixer = ATTENTION if ONE_OF_THREE[i] else MAMBA2
        return {**mixer, "ffn_norm": (N_EMBD,), **mixture(N_FF_EXPERT, shared=N_FF)}

    scales = {"logit_scale": 4.0, "residual_scale": 0.3, "embedding_scale": 2.0, "attention.scale": 0.1}
    metadata = {
        **sizes(3),
        **heads(attention__head_count_kv=ONE_OF_THREE),
        **experts(feed_forward_length=N_FF_EXPERT, expert_shared_feed_forward_length=N_FF),
        **_ssm(SSM_HEADS, SSM_GROUPS),
        **scales,
    }
    return TinyModel("granitehybrid", "granitehybrid", metadata, table(3, layer), embedding=0.5)


def falcon_h1() -> TinyModel:
    """Put scans by heads and attention side by side."""
    metadata = {**sizes(3), **heads(), **_ssm(SSM_HEADS, SSM_GROUPS)}
    shapes = table(3, lambda _i: {**MAMBA2, **ATTENTION, **FFN})
    return TinyModel("falcon-h1", "falcon-h1", metadata, shapes, unnamed=(*UNNAMED, "ffn_norm"))


def lfm2() -> TinyModel:
    """Mix short convolutions and attention."""
    short: Shapes = {
        "attn_norm": (N_EMBD,),
        "shortconv.conv": (3, N_EMBD),
        "shortconv.in_proj": (N_EMBD, 3 * N_EMBD),
        "shortconv.out_proj": (N_EMBD, N_EMBD),
    }

    def layer(i: int) -> Shapes:
        return {**({**ATTENTION, **QK_NORM} if ONE_OF_THREE[i] else short), **FFN}

    shapes = table(3, layer, token_embd_norm=(N_EMBD,))
    del shapes["output_norm"]  # it goes by the other name
    metadata = {**sizes(3), **heads(attention__head_count_kv=ONE_OF_THREE), "shortconv.l_cache": 3}
    return TinyModel("lfm2", "lfm2", metadata, shapes)


def qwen3next() -> TinyModel:
    """Mix gated delta nets, gated attention in the last layer, shared and routed experts."""
    n_k, n_v, size = 2, 4, STATE
    keys, values = n_k * size, n_v * size
    delta: Shapes = {
        "attn_qkv": (N_EMBD, 2 * keys + values),
        "attn_gate": (N_EMBD, values),
        "ssm_conv1d": (CONV, 2 * keys + values),
        "ssm_dt.bias": (n_v,),
        "ssm_a": (n_v,),
        "ssm_ba": (N_EMBD, 2 * n_v),
        "ssm_norm": (size,),
        "ssm_out": (values, N_EMBD),
    }

    def layer(i: int) -> Shapes:
        mixer = delta if i < 3 else {**ATTENTION, **QK_NORM, "attn_q": (N_EMBD, 2 * N_HEAD * HEAD)}
        ends: Shapes = {"attn_norm": (N_EMBD,), "post_attention_norm": (N_EMBD,), "ffn_gate_inp_shexp": (N_EMBD,)}
        return {**mixer, **ends, **mixture(shared=N_FF_EXPERT)}

    metadata = {
        **sizes(4),
        **heads(rope__dimension_count=HEAD // 2),
        **experts(expert_shared_feed_forward_length=N_FF_EXPERT),
        **_ssm(n_v, n_k),
        "ssm.inner_size": values,
    }
    return TinyModel("qwen3next", "qwen3next", metadata, table(4, layer))


def rwkv6() -> TinyModel:
    """Return a model of shifted tokens and a decay that depends on them."""
    mix, decay = 32, 64
    flat = ("attn_norm", "attn_norm_2", "time_mix_ln")

    def layer(_i: int) -> Shapes:
        squares = ("key", "value", "receptance", "gate", "output")
        return {
            **dict.fromkeys(flat, (N_EMBD,)),
            **{f"{name}.bias": (N_EMBD,) for name in flat},
            "time_mix_w1": (N_EMBD, 5 * mix),
            "time_mix_w2": (mix, N_EMBD, 5),
            "time_mix_lerp_x": (N_EMBD, 1, 1),
            "time_mix_lerp_fused": (N_EMBD, 1, 1, 5),
            "time_mix_first": (WKV_HEAD, N_EMBD // WKV_HEAD),
            "time_mix_decay": (N_EMBD,),
            "time_mix_decay_w1": (N_EMBD, decay),
            "time_mix_decay_w2": (decay, N_EMBD),
            **{f"time_mix_{name}": (N_EMBD, N_EMBD) for name in squares},
            "channel_mix_lerp_k": (N_EMBD, 1, 1),
            "channel_mix_lerp_r": (N_EMBD, 1, 1),
            "channel_mix_key": (N_EMBD, N_FF),
            "channel_mix_value": (N_FF, N_EMBD),
            "channel_mix_receptance": (N_EMBD, N_EMBD),
        }

    metadata = {
        **sizes(3, attention__head_count=0, attention__layer_norm_epsilon=1e-5),
        "wkv.head_size": WKV_HEAD,
        "time_mix_extra_dim": mix,
        "time_decay_extra_dim": decay,
        "rescale_every_n_layers": 2,
    }
    return TinyModel("rwkv6", "rwkv6", metadata, _with_first_norm(table(3, layer)))


def rwkv7() -> TinyModel:
    """Return a model of a state that is rotated and overwritten along learnt directions."""
    ranks = {"w": 32, "a": 32, "v": 32, "g": 64}
    flat = ("attn_norm", "attn_norm_2", "time_mix_ln")

    def layer(_i: int) -> Shapes:
        shapes: Shapes = dict.fromkeys(flat, (N_EMBD,)) | {f"{name}.bias": (N_EMBD,) for name in flat}
        for letter, rank in ranks.items():
            shapes |= {f"time_mix_{letter}1": (N_EMBD, rank), f"time_mix_{letter}2": (rank, N_EMBD)}
        shapes |= {f"time_mix_{name}": (N_EMBD,) for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")}
        shapes |= {f"time_mix_{name}": (N_EMBD, N_EMBD) for name in ("key", "value", "receptance", "output")}
        return {
            **shapes,
            "time_mix_lerp_fused": (N_EMBD, 1, 1, 6),
            "channel_mix_lerp_k": (N_EMBD, 1, 1),
            "channel_mix_key": (N_EMBD, N_FF),
            "channel_mix_value": (N_FF, N_EMBD),
        }

    metadata = {
        **sizes(3, attention__head_count=0, attention__layer_norm_epsilon=1e-5),
        "wkv.head_size": WKV_HEAD,
        "attention.decay_lora_rank": ranks["w"],
        "attention.iclr_lora_rank": ranks["a"],
        "attention.value_residual_mix_lora_rank": ranks["v"],
        "attention.gate_lora_rank": ranks["g"],
    }
    return TinyModel("rwkv7", "rwkv7", metadata, _with_first_norm(table(3, layer)))


def rwkv6_qwen2() -> TinyModel:
    """Put gated linear attention into the frame of a transformer."""
    mix, decay = 32, 64

    def layer(_i: int) -> Shapes:
        squares = ("key", "value", "receptance", "gate", "output")
        return {
            "attn_norm": (N_EMBD,),
            "time_mix_w1": (N_EMBD, 5 * mix),
            "time_mix_w2": (mix, N_EMBD, 5),
            "time_mix_lerp_x": (N_EMBD, 1, 1),
            "time_mix_lerp_fused": (N_EMBD, 1, 1, 5),
            "time_mix_decay": (N_EMBD,),
            "time_mix_decay_w1": (N_EMBD, decay),
            "time_mix_decay_w2": (decay, N_EMBD),
            **{f"time_mix_{name}": (N_EMBD, N_EMBD) for name in squares},
            **FFN,
        }

    metadata = {
        **sizes(3, attention__head_count=0),
        "wkv.head_size": WKV_HEAD,
        "time_mix_extra_dim": mix,
        "time_decay_extra_dim": decay,
        "token_shift_count": 1,
    }
    return TinyModel("rwkv6qwen2", "rwkv6qwen2", metadata, table(3, layer))


def kimi_linear() -> TinyModel:
    """Mix delta nets with a gate for each channel, latent attention, shared and routed experts."""
    rank, rope, n_layer = 64, 16, 3
    wide = N_HEAD * HEAD
    delta: Shapes = {
        **{f"ssm_conv1d_{letter}": (CONV, 1, wide, 1) for letter in "qkv"},
        **{f"attn_{letter}": (N_EMBD, wide) for letter in "qkv"},
        **{f"ssm_{letter}_a": (N_EMBD, HEAD) for letter in "fg"},
        **{f"ssm_{letter}_b": (HEAD, wide) for letter in "fg"},
        "ssm_beta": (N_EMBD, N_HEAD),
        "ssm_a": (1, N_HEAD, 1, 1),
        "ssm_dt.bias": (wide,),
        "ssm_norm": (HEAD,),
    }
    latent: Shapes = {
        "attn_q": (N_EMBD, N_HEAD * (HEAD + rope)),
        "attn_kv_a_mqa": (N_EMBD, rank + rope),
        "attn_kv_a_norm": (rank,),
        "attn_k_b": (HEAD, rank, N_HEAD),
        "attn_v_b": (rank, HEAD, N_HEAD),
    }

    def layer(i: int) -> Shapes:
        ends: Shapes = {"attn_norm": (N_EMBD,), "attn_output": (wide, N_EMBD), "ffn_norm": (N_EMBD,)}
        routed: Shapes = {**mixture(shared=N_FF_EXPERT), "exp_probs_b.bias": (N_EXPERT,)}
        return {**(latent if i == 1 else delta), **ends, **(DENSE if i == 0 else routed)}

    metadata = {
        **sizes(n_layer),
        **heads(attention__head_count_kv=(0, 1, 0), rope__dimension_count=rope),
        **experts(expert_shared_count=1, leading_dense_block_count=1, expert_weights_scale=2.0, expert_gating_func=2),
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": HEAD + rope,
        "attention.value_length_mla": HEAD,
        "attention.kv_lora_rank": rank,
        "ssm.conv_kernel": CONV,
        "kda.head_dim": HEAD,
    }
    return TinyModel("kimi-linear", "kimi-linear", metadata, table(n_layer, layer))


def _with_first_norm(shapes: Shapes) -> Shapes:
    """Add the norm of the embedding, and biases of the outer norms."""
    outer = ("token_embd_norm", "token_embd_norm.bias", "output_norm.bias")
    return {**shapes, **dict.fromkeys(outer, (N_EMBD,))}
