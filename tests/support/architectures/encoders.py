"""Models that read a whole text at once: encoders, and an encoder with a decoder."""

from __future__ import annotations

from .model import BOTH, ENCODER, HEAD, N_CTX, N_EMBD, N_FF, N_HEAD, N_VOCAB, Shapes, TinyModel, sizes

BUCKETS = 16


def bert() -> TinyModel:
    """Return an encoder with attention both ways, norms after each part, learnt positions."""
    n_layer = 3
    norms = ("attn_output_norm", "layer_output_norm")
    squares = ("attn_q", "attn_k", "attn_v", "attn_output")
    layer: Shapes = dict.fromkeys(squares, (N_EMBD, N_EMBD)) | {f"{name}.bias": (N_EMBD,) for name in squares}
    layer |= dict.fromkeys(norms, (N_EMBD,)) | {f"{name}.bias": (N_EMBD,) for name in norms}
    layer |= {"ffn_up": (N_EMBD, N_FF), "ffn_up.bias": (N_FF,), "ffn_down": (N_FF, N_EMBD), "ffn_down.bias": (N_EMBD,)}
    shapes: Shapes = {
        "token_embd": (N_EMBD, N_VOCAB),
        "token_types": (N_EMBD, 2),
        "position_embd": (N_EMBD, N_CTX),
        "token_embd_norm": (N_EMBD,),
        "token_embd_norm.bias": (N_EMBD,),
    }
    for i in range(n_layer):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    metadata = {
        **sizes(n_layer, attention__head_count=N_HEAD, attention__layer_norm_epsilon=1e-12),
        "attention.causal": False,
        "pooling_type": 0,  # a row for every token
        "tokenizer.ggml.token_type_count": 2,
    }
    return TinyModel("bert", "bert", metadata, shapes, ENCODER)


def _stack(prefix: str, n_layer: int, *, cross: bool) -> Shapes:
    shapes: Shapes = {f"{prefix}.output_norm": (N_EMBD,)}
    for i in range(n_layer):
        block = f"{prefix}.blk.{i}"
        if i == 0:  # later layers use the first one's
            shapes[f"{block}.attn_rel_b"] = (N_HEAD, BUCKETS)
        for part in ("attn", "cross_attn") if cross else ("attn",):
            shapes[f"{block}.{part}_norm"] = (N_EMBD,)
            shapes |= {f"{block}.{part}_{name}": (N_EMBD, N_HEAD * HEAD) for name in "qkv"}
            shapes[f"{block}.{part}_o"] = (N_HEAD * HEAD, N_EMBD)
        shapes[f"{block}.ffn_norm"] = (N_EMBD,)
        shapes |= {f"{block}.ffn_{name}": (N_EMBD, N_FF) for name in ("gate", "up")}
        shapes[f"{block}.ffn_down"] = (N_FF, N_EMBD)
    return shapes


def _t5(name: str, arch: str, role: str, shapes: Shapes) -> TinyModel:
    metadata = {
        **sizes(2, attention__head_count=N_HEAD, attention__key_length=HEAD, attention__value_length=HEAD),
        "attention.relative_buckets_count": BUCKETS,
        "decoder_start_token_id": 0,
    }
    return TinyModel(name, arch, metadata, {"token_embd": (N_EMBD, N_VOCAB), **shapes}, role, query=HEAD**-0.5)


def t5() -> TinyModel:
    """Return a model of relative positions, whose decoder attends to what the encoder read."""
    shapes = {**_stack("enc", 2, cross=False), **_stack("dec", 2, cross=True), "output": (N_EMBD, N_VOCAB)}
    return _t5("t5", "t5", BOTH, shapes)


def t5_encoder() -> TinyModel:
    """Return the encoder alone."""
    return _t5("t5encoder", "t5encoder", ENCODER, _stack("enc", 2, cross=False))
