"""Describe small models: sizes, which tensors an architecture has, and the metadata that a variant is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from tests.support.random_gguf import Value


@dataclass(frozen=True)
class Architecture:
    """Say which tensors an architecture has beside those that all of them have.

    Attributes
    ----------
    biases : tuple of str
        Matrices of a layer that carry a bias in real files.
    qk_norm, post_norms : bool
        Norms of query and key heads; norms after attention and after the feed-forward part.
    fused : bool
        One matrix for query, key and value, and one for gate and up.
    scaled_embedding : bool
        The embedding is multiplied by ``sqrt(n_embd)`` in the graph.
    """

    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    post_norms: bool = False
    fused: bool = False
    scaled_embedding: bool = False


ARCHITECTURES = {
    "llama": Architecture(),
    "qwen2": Architecture(biases=("attn_q", "attn_k", "attn_v")),
    "qwen3": Architecture(qk_norm=True),
    "qwen3moe": Architecture(qk_norm=True),
    "gemma2": Architecture(post_norms=True, scaled_embedding=True),
    "gemma3": Architecture(qk_norm=True, post_norms=True, scaled_embedding=True),
    "phi3": Architecture(fused=True),
}


@dataclass(frozen=True)
class RandomModel:
    """Describe one model.

    Attributes
    ----------
    name : str
        What tests call it; the seed of its weights follows from it.
    arch : str
        One of `ARCHITECTURES`.
    n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab : int
        Sizes. Rows of 256 and 512 elements hold whole blocks of every type.
    n_expert, n_expert_used : int
        Experts of the feed-forward part; 0 for none.
    tied : bool
        The output matrix is the embedding.
    biases : tuple of str
        Matrices of a layer with a bias beyond the architecture's own.
    factors : tuple of str
        Rotation factor tensors, ``head_dim / 2`` (or half of ``rope.dimension_count``) elements each.
    metadata : mapping
        Further keys without the architecture's prefix.
    vocab : str
        ``"none"``, ``"spm"`` or ``"bpe"``.
    """

    name: str
    arch: str
    n_layer: int = 3
    n_embd: int = 256
    n_ff: int = 512
    n_head: int = 8
    n_head_kv: int = 2
    head_dim: int = 32
    n_vocab: int = 512
    n_expert: int = 0
    n_expert_used: int = 0
    tied: bool = False
    biases: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    metadata: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    vocab: str = "none"

    @property
    def traits(self) -> Architecture:
        """Return what the architecture adds."""
        return ARCHITECTURES[self.arch]

    @property
    def n_rot(self) -> int:
        """Return how many elements of a head are rotated."""
        n_rot = self.metadata.get("rope.dimension_count", self.head_dim)
        assert isinstance(n_rot, int)
        return n_rot


def _models() -> tuple[RandomModel, ...]:
    yarn = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
    }
    # Soft caps of 50 and 30 would not show with logits of a few units, nor would a window of 512.
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
    gemma2 = {**caps, "attention.sliding_window": 16}
    gemma3 = {"attention.sliding_window": 16, "rope.freq_base": 1e6}
    thin = partial(RandomModel, tied=True, n_embd=64, n_ff=64, n_head=2, n_head_kv=1, head_dim=64)
    longrope = {"rope.scaling.attn_factor": 1.19, "attention.sliding_window": 16}
    return (
        RandomModel("llama", "llama"),
        RandomModel("llama-spm", "llama", vocab="spm", tied=True),
        RandomModel("llama-bpe", "llama", vocab="bpe", factors=("rope_freqs",), metadata={"rope.freq_base": 5e5}),
        RandomModel("llama-mistral", "llama", head_dim=64, n_head=4, n_head_kv=1, metadata={"rope.freq_base": 1e6}),
        RandomModel("llama-linear", "llama", metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        RandomModel("llama-old-scale", "llama", metadata={"rope.scale_linear": 4.0}),
        RandomModel("llama-yarn", "llama", metadata=yarn),
        RandomModel(
            "llama-longrope",
            "llama",
            factors=("rope_factors_short", "rope_factors_long"),
            metadata={"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 4096},
        ),
        RandomModel(
            "llama-biases",
            "llama",
            biases=("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"),
        ),
        RandomModel("llama-wide-heads", "llama", head_dim=64, n_head=8),  # attn_output takes 512 elements a row
        RandomModel("llama-head-80", "llama", n_embd=320, n_head=4, n_head_kv=2, head_dim=80),  # no whole K-quant rows
        RandomModel("llama-mha", "llama", n_head_kv=8),
        RandomModel("llama-moe", "llama", n_expert=8, n_expert_used=2, n_ff=256),
        RandomModel("llama-moe-top1", "llama", n_expert=4, n_expert_used=1, n_ff=256),
        RandomModel("qwen2", "qwen2"),
        RandomModel("qwen2-tied", "qwen2", tied=True, n_head_kv=1, vocab="bpe", metadata={"rope.freq_base": 1e6}),
        RandomModel("qwen3", "qwen3", head_dim=64, metadata={"rope.freq_base": 1e6}),
        RandomModel("qwen3-tied", "qwen3", tied=True),
        RandomModel("qwen3-yarn", "qwen3", metadata={**yarn, "rope.freq_base": 1e6}),
        RandomModel("qwen3moe", "qwen3moe", n_expert=8, n_expert_used=3, metadata={"expert_feed_forward_length": 256}),
        RandomModel("gemma2", "gemma2", tied=True, n_layer=4, metadata=gemma2),
        # 46 and 62 layers mark the 27B models, whose queries are scaled by n_embd / n_head and not by the head's size.
        thin("gemma2-27b", "gemma2", n_layer=46, metadata=gemma2),
        RandomModel("gemma2-wide-heads", "gemma2", tied=True, head_dim=64, metadata=gemma2, vocab="spm"),
        RandomModel("gemma3", "gemma3", tied=True, n_layer=6, n_head_kv=1, head_dim=64, n_head=4, metadata=gemma3),
        RandomModel(
            "gemma3-linear",  # as the larger ones: the layers without a window are scaled, those with one are not
            "gemma3",
            n_layer=6,
            metadata={**gemma3, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        ),
        RandomModel(
            "gemma3-capped",
            "gemma3",
            tied=True,
            metadata={
                **gemma3,
                "final_logit_softcapping": 4.0,
                "attention.sliding_window_pattern": 2,
                "rope.freq_base_swa": 2e4,
            },
        ),
        thin("gemma3-27b", "gemma3", n_layer=62, metadata=gemma3),
        RandomModel(
            "gemma3-pattern",
            "gemma3",
            tied=True,
            metadata={**gemma3, "attention.sliding_window_pattern": (False, True, False)},
        ),
        RandomModel("gemma3-full", "gemma3", tied=True, n_layer=2, metadata={"rope.freq_base": 1e6}),
        RandomModel("phi3", "phi3", n_head_kv=8, metadata={"attention.sliding_window": 16}),  # stock ignores the window
        RandomModel(
            "phi3-short",
            "phi3",
            factors=("rope_factors_short", "rope_factors_long"),
            metadata={**longrope, "rope.scaling.original_context_length": 4096},
        ),
        RandomModel(
            "phi3-long",
            "phi3",
            factors=("rope_factors_short", "rope_factors_long"),
            metadata={**longrope, "rope.scaling.original_context_length": 64},
        ),
        RandomModel("phi3-partial", "phi3", tied=True, metadata={"rope.dimension_count": 24}),
    )


MODELS = {model.name: model for model in _models()}
