"""Write a random model as a GGUF file.

Norms keep activations of order one, the embedding dominates the residual stream and attention is neither flat nor
peaked: such a network amplifies rounding little. Routers of expert layers decide by large margins, since two engines
that round differently would send a token of a near tie to different experts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QuantType
from numpy.typing import NDArray

from bench.make_gguf import q4_k, q5_k, q6_k, tensor_type
from tests.support.random_gguf import add_value, cached_file, finish

from .shapes import RandomModel, Value
from .vocab import add_vocabulary

REVISION = 3
"""Counts changes of what is written, so that files of before are not taken for current ones."""

KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q4_K_M", "Q5_K", "Q6_K")
BLOCKS = {QuantType.Q4_K: q4_k, QuantType.Q5_K: q5_k, QuantType.Q6_K: q6_k}
"""Random blocks of the types that the `gguf` package cannot quantise to."""

N_CTX_TRAIN = 4096
QUERY_GAIN = 1.5  # sharpens attention: with 1 the scores' deviation is 1
POST_NORM = 0.6  # what attention and feed-forward of all layers add to a residual stream of order one
EXPERT_MARGIN = (12.0, 9.0, 7.0)  # a token's component along its experts' directions; its norm is 16 without


def _std(shape: tuple[int, ...], gain: float = 1.0) -> float:
    return float(gain * shape[-1] ** -0.5)


class _Weights:
    """Draw the weights of one model and add them to its file."""

    def __init__(self, writer: gguf.GGUFWriter, model: RandomModel, kind: str) -> None:
        self._writer = writer
        self._model = model
        self._kind = kind
        self.rng = np.random.default_rng(zlib.crc32(model.name.encode()))

    def _type(self, name: str, layer: int, n_in: int) -> QuantType:
        quant = tensor_type(self._kind, name, layer, self._model.n_layer)
        if n_in % gguf.GGML_QUANT_SIZES[quant][0]:
            return QuantType.Q8_0  # rows that hold no whole K-quant block, as quantisers do
        return quant

    def add(self, name: str, values: NDArray[np.float32], quant: QuantType = QuantType.F32) -> None:
        """Add a tensor with given values."""
        data = gguf.quants.quantize(values.astype(np.float32), quant)
        self._writer.add_tensor(f"{name}.weight", data, raw_shape=data.shape, raw_dtype=quant)

    def matrix(self, name: str, shape: tuple[int, ...], *, layer: int = -1, gain: float = 1.0) -> None:
        """Add a random matrix, or one for each expert, of shape ``(..., n_out, n_in)``."""
        full = name if layer < 0 else f"blk.{layer}.{name}"
        quant = self._type(name, layer, shape[-1])
        std = _std(shape, gain)
        if quant in BLOCKS:
            elements, size = gguf.GGML_QUANT_SIZES[quant]
            rows = (*shape[:-1], shape[-1] // elements * size)
            data = BLOCKS[quant](self.rng, int(np.prod(shape)) // elements, std).reshape(rows)
            self._writer.add_tensor(f"{full}.weight", data, raw_shape=data.shape, raw_dtype=quant)
        else:
            self.add(full, self.rng.standard_normal(shape, dtype=np.float32) * np.float32(std), quant)

    def vector(self, name: str, size: int, *, mean: float, std: float = 0.1) -> None:
        """Add random numbers around a mean, always in F32."""
        values = mean * (1.0 + std * self.rng.standard_normal(size, dtype=np.float32))
        self._writer.add_tensor(name, values.astype(np.float32))

    def bias(self, name: str, size: int) -> None:
        """Add a bias of deviation 0.3."""
        self._writer.add_tensor(f"{name}.bias", 0.3 * self.rng.standard_normal(size, dtype=np.float32))

    def factors(self, name: str, size: int) -> None:
        """Add rotation factors between 1 and 8."""
        values = np.exp(self.rng.uniform(0.0, np.log(8.0), size))
        self._writer.add_tensor(f"{name}.weight", np.sort(values).astype(np.float32))


def write(path: Path, model: RandomModel, kind: str) -> None:
    """Write a model.

    Parameters
    ----------
    path : pathlib.Path
        File to write.
    model : RandomModel
        Its description.
    kind : str
        Type of the matrices, one of `KINDS`; norms, biases and routers are F32.
    """
    writer = gguf.GGUFWriter(path, model.arch)
    for key, value in _metadata(model).items():
        add_value(writer, f"{model.arch}.{key}", value)
    add_vocabulary(writer, model.vocab, model.n_vocab)
    weights = _Weights(writer, model, kind)
    directions = _embedding(weights, model, kind)
    for layer in range(model.n_layer):
        _layer(weights, model, layer, directions)
    # Logits of deviation 2: rows of the output matrix have norm 1, those of an unscaled embedding norm 16.
    weights.vector("output_norm.weight", model.n_embd, mean=2.0 if not model.tied or _small_embedding(model) else 0.125)
    if not model.tied:
        weights.matrix("output", (model.n_vocab, model.n_embd))
    for name in model.factors:
        weights.factors(name, model.n_rot // 2)
    finish(writer)


def cached(model: RandomModel, kind: str) -> Path:
    """Return the file of a model in the cache folder, written at the first call.

    Parameters
    ----------
    model : RandomModel
        Its description.
    kind : str
        Type of its matrices.
    """
    described = f"{REVISION} {model} {sorted(_metadata(model).items())}"
    return cached_file(f"{model.name}-{kind}", described, lambda path: write(path, model, kind))


def _small_embedding(model: RandomModel) -> bool:
    return model.traits.scaled_embedding


def _metadata(model: RandomModel) -> dict[str, Value]:
    base: dict[str, Value] = {
        "context_length": N_CTX_TRAIN,
        "embedding_length": model.n_embd,
        "block_count": model.n_layer,
        "feed_forward_length": model.n_ff,
        "attention.head_count": model.n_head,
        "attention.head_count_kv": model.n_head_kv,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim,
        "rope.dimension_count": model.head_dim,
        "vocab_size": model.n_vocab,
    }
    if model.n_expert:
        base |= {"expert_count": model.n_expert, "expert_used_count": model.n_expert_used}
    return {**base, **model.metadata}


def _embedding(weights: _Weights, model: RandomModel, kind: str) -> NDArray[np.float32]:
    """Add the embedding; return a direction for each expert, along which tokens have components of their own."""
    shape = (model.n_vocab, model.n_embd)
    if not model.n_expert:
        gain = 1.0 if _small_embedding(model) else model.n_embd**0.5
        weights.matrix("token_embd", shape, gain=gain)
        return np.zeros((0, model.n_embd), np.float32)
    directions = np.linalg.qr(weights.rng.standard_normal((model.n_embd, model.n_expert)))[0].T.astype(np.float32)
    values = weights.rng.standard_normal(shape, dtype=np.float32)
    order = weights.rng.permuted(np.tile(np.arange(model.n_expert), (model.n_vocab, 1)), axis=1)
    for rank in range(model.n_expert_used):
        values += np.float32(EXPERT_MARGIN[rank]) * directions[order[:, rank]]
    weights.add("token_embd", values, QuantType[kind] if kind in ("F32", "F16", "BF16") else QuantType.Q8_0)
    return directions


def _layer(weights: _Weights, model: RandomModel, layer: int, directions: NDArray[np.float32]) -> None:
    traits = model.traits
    block = f"blk.{layer}"
    for name, size in _norms(model):
        mean = POST_NORM * model.n_layer**-0.5 if name.startswith("post_") else 1.0
        weights.vector(f"{block}.{name}.weight", size, mean=mean)
    for name, shape, gain in _matrices(model):
        weights.matrix(name, shape, layer=layer, gain=gain)
        if name in traits.biases + model.biases:
            weights.bias(f"{block}.{name}", shape[0])
    if model.n_expert:
        # Other layers, other experts: the directions change places.
        weights.add(f"{block}.ffn_gate_inp", 0.3 * np.roll(directions, layer, axis=0))


def _norms(model: RandomModel) -> Iterator[tuple[str, int]]:
    yield from (("attn_norm", model.n_embd), ("ffn_norm", model.n_embd))
    if model.traits.qk_norm:
        yield from (("attn_q_norm", model.head_dim), ("attn_k_norm", model.head_dim))
    if model.traits.post_norms:
        yield from (("post_attention_norm", model.n_embd), ("post_ffw_norm", model.n_embd))


def _matrices(model: RandomModel) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Yield name, shape and gain of each matrix of a layer."""
    n_q, n_kv = model.head_dim * model.n_head, model.head_dim * model.n_head_kv
    if model.traits.fused:
        yield "attn_qkv", (n_q + 2 * n_kv, model.n_embd), QUERY_GAIN
    else:
        yield "attn_q", (n_q, model.n_embd), QUERY_GAIN
        yield "attn_k", (n_kv, model.n_embd), 1.0
        yield "attn_v", (n_kv, model.n_embd), 1.0
    yield "attn_output", (model.n_embd, n_q), 1.0
    if model.n_expert:
        n_ff = model.metadata.get("expert_feed_forward_length", model.n_ff)
        assert isinstance(n_ff, int)
        yield "ffn_gate_exps", (model.n_expert, n_ff, model.n_embd), 1.0
        yield "ffn_up_exps", (model.n_expert, n_ff, model.n_embd), 1.0
        yield "ffn_down_exps", (model.n_expert, model.n_embd, n_ff), 1.0
        return
    if model.traits.fused:
        yield "ffn_up", (2 * model.n_ff, model.n_embd), 1.0
    else:
        yield "ffn_gate", (model.n_ff, model.n_embd), 1.0
        yield "ffn_up", (model.n_ff, model.n_embd), 1.0
    yield "ffn_down", (model.n_embd, model.n_ff), 1.0
