"""What a model file says about its network: sizes, attention, positions, experts; each value checked as it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ggml_rpc.errors import ModelError
from ggml_rpc.spec.enums import RopeMode

from .gguf_header import shown

if TYPE_CHECKING:
    from .gguf_file import GgufFile

# Bounds far beyond any model: a file cannot make later products overflow or loops endless.
_MAX_LAYERS = 4096
_MAX_HEADS = 1 << 14
_MAX_WIDTH = 1 << 20
_MAX_VOCAB = 1 << 24
_MAX_CONTEXT = 1 << 30
_MAX_EXPERTS = 4096

_SCALINGS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions.

    Parameters
    ----------
    mode : RopeMode
        Which elements form a pair.
    n_dims : int
        Elements of a head that turn.
    base, scale : float
        Base of the frequencies, and what positions are multiplied by.
    base_windowed, scale_windowed : float
        The same in layers with a sliding window.
    n_ctx_orig : int
        Context of the training before it was extended.
    scaling : str
        none, linear, yarn or longrope.
    ext_factor, attn_factor : float
        Share of YaRN's extrapolation (1 or 0), and what results are multiplied by.
    """

    mode: RopeMode
    n_dims: int
    base: float
    scale: float
    base_windowed: float
    scale_windowed: float
    n_ctx_orig: int
    scaling: str
    ext_factor: float
    attn_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class HParams:
    """Hold the sizes and settings of one model; an architecture fills in what files of its kind leave out.

    Parameters
    ----------
    architecture : str
        As in the file.
    n_vocab, n_ctx_train, n_embd, n_layer : int
        Tokens, positions of the training, width, layers.
    n_head, n_head_kv, n_ff : tuple of int
        Query heads, key and value heads, and width of the feed-forward part, for each layer.
    head_dim_k, head_dim_v : int
        Elements of a head.
    eps : float
        What RMS norms add.
    rope : Rope
        Positions.
    attention_scale : float
        What the products of queries and keys are multiplied by; 0: 1/sqrt(head_dim_k).
    embedding_scale : float
        What token embeddings are multiplied by.
    attention_cap, logit_cap : float
        Soft caps: x becomes cap * tanh(x / cap); 0: none.
    window : int
        Positions that a windowed layer sees, its own included; 0: no layer has a window.
    windowed : tuple of bool
        Which layers have the window.
    n_expert, n_expert_used, n_ff_expert : int
        Experts, how many a token uses, and their width; 0 in dense models.
    """

    architecture: str
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    eps: float
    rope: Rope
    windowed: tuple[bool, ...]
    attention_scale: float = 0.0
    embedding_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    window: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0

    def n_embd_q(self, layer: int) -> int:
        """Return the width of a layer's queries."""
        return self.head_dim_k * self.n_head[layer]

    def n_embd_k(self, layer: int) -> int:
        """Return the width of a layer's keys: what one cell of its cache holds."""
        return self.head_dim_k * self.n_head_kv[layer]

    def n_embd_v(self, layer: int) -> int:
        """Return the width of a layer's values."""
        return self.head_dim_v * self.n_head_kv[layer]

    @property
    def kq_scale(self) -> float:
        """Return what the products of queries and keys are multiplied by."""
        return self.attention_scale or 1.0 / math.sqrt(self.head_dim_k)

    @classmethod
    def from_gguf(cls, file: GgufFile, rope_mode: RopeMode) -> HParams:
        """Read what every architecture states.

        Parameters
        ----------
        file : GgufFile
            The model.
        rope_mode : RopeMode
            How the architecture pairs elements: no key states it.

        Raises
        ------
        ModelError
            If a key is missing, of the wrong type or out of bounds, or if two do not fit each other; it names the key.
        """
        n_layer = file.get_int("{arch}.block_count", minimum=1, maximum=_MAX_LAYERS)
        n_embd = file.get_int("{arch}.embedding_length", minimum=1, maximum=_MAX_WIDTH)
        n_head = file.get_ints("{arch}.attention.head_count", n_layer, minimum=1, maximum=_MAX_HEADS)
        n_head_kv = file.get_ints("{arch}.attention.head_count_kv", n_layer, n_head, minimum=1, maximum=_MAX_HEADS)
        for heads, heads_kv in zip(n_head, n_head_kv, strict=True):
            if heads % heads_kv:
                raise wrong(file, "attention.head_count_kv", f"{heads_kv} does not divide {heads} query heads")
        head_dim_k = _head_dim(file, "attention.key_length", n_embd, n_head[0])
        head_dim_v = _head_dim(file, "attention.value_length", n_embd, n_head[0])
        if not file.get_bool("{arch}.attention.causal", True):
            raise wrong(file, "attention.causal", "only causal models, which generate text, can be run")
        n_expert, n_used = _experts(file, n_layer)
        # Models of experts alone need not state the width of a dense layer.
        absent = (0,) * n_layer if n_expert else ()
        n_ff = file.get_ints("{arch}.feed_forward_length", n_layer, absent, minimum=1, maximum=_MAX_WIDTH)
        if not n_ff:
            raise wrong(file, "feed_forward_length", "it is missing")
        eps = file.get_float("{arch}.attention.layer_norm_rms_epsilon")
        if not 0 < eps < 1:
            raise wrong(file, "attention.layer_norm_rms_epsilon", f"{eps} is not between 0 and 1")
        n_ctx_train = file.get_int("{arch}.context_length", minimum=1, maximum=_MAX_CONTEXT)
        return cls(
            architecture=file.architecture,
            n_vocab=_n_vocab(file),
            n_ctx_train=n_ctx_train,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=n_head_kv,
            n_ff=n_ff,
            head_dim_k=head_dim_k,
            head_dim_v=head_dim_v,
            eps=eps,
            rope=_rope(file, rope_mode, head_dim_k, n_ctx_train),
            windowed=(False,) * n_layer,
            attention_scale=at_least(file, "attention.scale", 0.0),
            n_expert=n_expert,
            n_expert_used=n_used,
            n_ff_expert=file.get_int("{arch}.expert_feed_forward_length", 0, maximum=_MAX_WIDTH) if n_expert else 0,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Sliding windows of a model: their width (0: none), which layers have one, and the positions' base there."""

    width: int
    layers: tuple[bool, ...]
    rope_base: float


def read_window(file: GgufFile, hp: HParams, *, width: int, period: int, rope_base: float) -> Window:
    """Read which layers see only the last positions.

    Parameters
    ----------
    file : GgufFile
        The model.
    hp : HParams
        What was read so far.
    width : int
        The window if the file states none.
    period : int
        Of this many layers the last sees everything, if the file does not state another number or a list of layers.
    rope_base : float
        Base of the windowed layers' frequencies if the file states none.
    """
    width = file.get_int("{arch}.attention.sliding_window", width, maximum=_MAX_CONTEXT)
    if width == 0:
        return Window(0, (False,) * hp.n_layer, rope_base)
    key = "{arch}.attention.sliding_window_pattern"
    stated = file.metadata.get(key.format(arch=file.architecture))
    if isinstance(stated, np.ndarray):
        layers = tuple(bool(x) for x in file.get_ints(key, hp.n_layer, maximum=1))
    else:
        period = file.get_int(key, period, maximum=_MAX_LAYERS)
        layers = tuple(period == 0 or il % period < period - 1 for il in range(hp.n_layer))
    return Window(width, layers, _positive(file, "rope.freq_base_swa", rope_base))


def wrong(file: GgufFile, key: str, why: str) -> ModelError:
    """Return the error for a key of the file's architecture, named without the architecture."""
    return ModelError(f"{file.path}: '{file.architecture}.{key}' cannot be right: {why}")


def at_least(file: GgufFile, key: str, default: float) -> float:
    """Return a number that must not be negative."""
    value = file.get_float("{arch}." + key, default)
    if value < 0:
        raise wrong(file, key, f"{value} is negative")
    return value


def _positive(file: GgufFile, key: str, default: float) -> float:
    value = file.get_float("{arch}." + key, default)
    if value <= 0:
        raise wrong(file, key, f"{value} is not above 0")
    return value


def _head_dim(file: GgufFile, key: str, n_embd: int, n_head: int) -> int:
    stated = file.get_int("{arch}." + key, 0, maximum=_MAX_WIDTH)
    if stated:
        return stated
    if n_embd % n_head:
        raise wrong(file, "attention.head_count", f"{n_head} heads do not divide the width {n_embd}")
    return n_embd // n_head


def _n_vocab(file: GgufFile) -> int:
    """Return the size of the vocabulary: that of the tokenizer, or for models without one of the embedding table."""
    tokens = file.get_strings("tokenizer.ggml.tokens", None)
    if tokens is not None:
        n = len(tokens)
    elif (table := file.tensors.get("token_embd.weight")) is not None:
        n = table.ne[1]
    else:
        raise ModelError(
            f"{file.path} has neither a vocabulary nor a tensor 'token_embd.weight': it is no language model"
        )
    if not 1 <= n <= _MAX_VOCAB:
        raise ModelError(f"{file.path} has a vocabulary of {n} tokens; 1 to {_MAX_VOCAB} are possible")
    return n


def _experts(file: GgufFile, n_layer: int) -> tuple[int, int]:
    n = file.get_int("{arch}.expert_count", 0, maximum=_MAX_EXPERTS)
    used = file.get_ints("{arch}.expert_used_count", n_layer, (0,) * n_layer, maximum=_MAX_EXPERTS)
    if len(set(used)) != 1:
        raise wrong(file, "expert_used_count", "models that use another number of experts in each layer cannot be run")
    if not (0 < used[0] <= n if n else used[0] == 0):
        raise wrong(file, "expert_used_count", f"{used[0]} of {n} experts")
    if file.get_int("{arch}.expert_group_count", 0) > 1:
        raise wrong(file, "expert_group_count", "grouped experts belong to no architecture that can be run")
    return n, used[0]


def _rope(file: GgufFile, mode: RopeMode, head_dim: int, n_ctx_train: int) -> Rope:
    n_dims = file.get_int("{arch}.rope.dimension_count", head_dim, minimum=2, maximum=_MAX_WIDTH)
    if n_dims > head_dim or n_dims % 2:
        raise wrong(file, "rope.dimension_count", f"{n_dims} is not an even number up to the head's {head_dim}")
    scaling = file.get_str("{arch}.rope.scaling.type", "linear")
    if scaling not in _SCALINGS:
        raise wrong(file, "rope.scaling.type", f"{shown(scaling)} is none of {', '.join(_SCALINGS)}")
    old = at_least(file, "rope.scale_linear", 0.0)
    factor = at_least(file, "rope.scaling.factor", old)
    if 0 < factor < 0.01:
        raise wrong(file, "rope.scaling.factor", f"{factor} stretches positions by more than 100")
    scale = 1.0 if scaling == "none" or factor == 0 else 1.0 / factor
    base = _positive(file, "rope.freq_base", 10000.0)
    attn_factor = _positive(file, "rope.scaling.attn_factor", 1.0)
    if scaling == "yarn" and scale > 1:
        # ROPE itself multiplies by 1 + 0.1 ln(1/scale); for factors above 1 that is all there is to it.
        attn_factor /= 1.0 - 0.1 * math.log(scale)
    return Rope(
        mode=mode,
        n_dims=n_dims,
        base=base,
        scale=scale,
        base_windowed=base,
        scale_windowed=scale,
        n_ctx_orig=file.get_int("{arch}.rope.scaling.original_context_length", n_ctx_train, maximum=_MAX_CONTEXT),
        scaling=scaling,
        ext_factor=1.0 if scaling == "yarn" else 0.0,
        attn_factor=attn_factor,
    )
