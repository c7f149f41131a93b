"""What describes a tiny model: its metadata and the shape of each tensor, and the parts that architectures share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.support.random_gguf import Value

Shapes = dict[str, tuple[int, ...]]
"""Shapes by name, the fastest dimension first; most names lack their `.weight`."""

N_EMBD = 128
N_FF = 256
N_VOCAB = 256
N_HEAD = 4
N_HEAD_KV = 2
HEAD = 32
N_EXPERT = 8
N_USED = 2
N_FF_EXPERT = 64
N_CTX = 512

UNNAMED = (".bias", "ssm_a", "ssm_d")
DECODER, ENCODER, BOTH = "decoder", "encoder", "both"


@dataclass(frozen=True)
class TinyModel:
    """Describe one model.

    Attributes
    ----------
    name : str
        What tests call it; the seed of its weights follows from it.
    arch : str
        Its architecture's name in GGUF files.
    metadata : mapping
        Keys without the architecture's prefix.
    tensors : mapping
        Shape of each tensor by its full name, the fastest dimension first.
    role : str
        `DECODER` gives logits, `ENCODER` embeddings, `BOTH` logits after an encoder has read another text.
    embedding : float
        Deviation of the numbers in the table of tokens.
    query : float
        Gain of queries, less than 1 where scores are not divided by the root of a head's size: attention that all but
        chooses one position amplifies rounding.
    branch : float
        Mean of the norms behind the parts of a layer, less than 1 where many layers would outweigh the embedding.
    unnamed : tuple of str
        Ends of names that take no `.weight`.
    """

    name: str
    arch: str
    metadata: Mapping[str, Value]
    tensors: Mapping[str, tuple[int, ...]]
    role: str = DECODER
    embedding: float = 1.0
    query: float = 1.0
    branch: float = 1.0
    unnamed: tuple[str, ...] = UNNAMED

    @property
    def n_expert(self) -> int:
        """Return the number of experts, 0 for none."""
        n_expert = self.metadata.get("expert_count", 0)
        assert isinstance(n_expert, int)
        return n_expert


def sizes(n_layer: int, **more: Value) -> dict[str, Value]:
    """Return the keys that every file has; double underscores in further names stand for dots."""
    keys: dict[str, Value] = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": n_layer,
        "vocab_size": N_VOCAB,
        "feed_forward_length": N_FF,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    return keys | {name.replace("__", "."): value for name, value in more.items()}


def heads(**more: Value) -> dict[str, Value]:
    """Return the keys of attention with grouped heads."""
    keys: dict[str, Value] = {
        "attention.head_count": N_HEAD,
        "attention.head_count_kv": N_HEAD_KV,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.dimension_count": HEAD,
    }
    return keys | {name.replace("__", "."): value for name, value in more.items()}


def experts(**more: Value) -> dict[str, Value]:
    """Return the keys of a mixture of experts."""
    keys: dict[str, Value] = {
        "expert_count": N_EXPERT,
        "expert_used_count": N_USED,
        "expert_feed_forward_length": N_FF_EXPERT,
    }
    return keys | {name.replace("__", "."): value for name, value in more.items()}


def table(n_layer: int, layer: Callable[[int], Shapes], *, prefix: str = "blk.", **outer: tuple[int, ...]) -> Shapes:
    """Return the shapes of all tensors: those of each layer, the table of tokens, the head, and further ones."""
    shapes: Shapes = {"token_embd": (N_EMBD, N_VOCAB), "output_norm": (N_EMBD,), "output": (N_EMBD, N_VOCAB)}
    shapes |= {name.replace("__", "."): shape for name, shape in outer.items()}
    for i in range(n_layer):
        shapes |= {f"{prefix}{i}.{name}": shape for name, shape in layer(i).items()}
    return shapes


ATTENTION: Shapes = {
    "attn_norm": (N_EMBD,),
    "attn_q": (N_EMBD, N_HEAD * HEAD),
    "attn_k": (N_EMBD, N_HEAD_KV * HEAD),
    "attn_v": (N_EMBD, N_HEAD_KV * HEAD),
    "attn_output": (N_HEAD * HEAD, N_EMBD),
}
QK_NORM: Shapes = {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
DENSE: Shapes = {"ffn_gate": (N_EMBD, N_FF), "ffn_up": (N_EMBD, N_FF), "ffn_down": (N_FF, N_EMBD)}
FFN: Shapes = {"ffn_norm": (N_EMBD,), **DENSE}


def mixture(n_ff: int = N_FF_EXPERT, shared: int = 0) -> Shapes:
    """Return the shapes of routed experts, and of one that every token takes."""
    shapes: Shapes = {
        "ffn_gate_inp": (N_EMBD, N_EXPERT),
        "ffn_gate_exps": (N_EMBD, n_ff, N_EXPERT),
        "ffn_up_exps": (N_EMBD, n_ff, N_EXPERT),
        "ffn_down_exps": (n_ff, N_EMBD, N_EXPERT),
    }
    if shared:
        shapes |= {"ffn_gate_shexp": (N_EMBD, shared), "ffn_up_shexp": (N_EMBD, shared)}
        shapes["ffn_down_shexp"] = (shared, N_EMBD)
    return shapes
