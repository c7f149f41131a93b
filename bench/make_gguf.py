"""Write GGUF models for measurements: random weights in any llama shape, or an existing model with plain F16 weights.

Random blocks are written as such instead of being quantised, which takes seconds where quantising a billion weights
would take many minutes; scales are chosen so that weights have mean 0 and standard deviation ``n_in ** -0.5``.
There is no vocabulary: programs that feed token ids work, text does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QuantType
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """Hold the sizes of a llama model: embedding, feed-forward, heads, key/value heads, layers, vocabulary."""

    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_layer: int
    n_vocab: int


SHAPES = {
    "tinyllama": Shape(2048, 5632, 32, 4, 22, 32000),
    "tiny": Shape(256, 768, 8, 4, 2, 512),
}


def _half(values: NDArray[np.float64]) -> Bytes:
    return values.astype(np.float16).view(np.uint8).reshape(len(values), 2)


def _random(rng: np.random.Generator, rows: int, columns: int) -> Bytes:
    return np.frombuffer(rng.bytes(rows * columns), np.uint8).reshape(rows, columns)


def _scale(rng: np.random.Generator, count: int, std: float, spread: float) -> NDArray[np.float64]:
    """Return block scales around ``std / spread``, where `spread` is the deviation of the integers in a block."""
    return std / spread * rng.uniform(0.8, 1.2, count)


def q4_0(rng: np.random.Generator, count: int, std: float) -> Bytes:
    """Return random Q4_0 blocks: scale, 16 bytes of nibbles less 8 (deviation 4.6)."""
    return np.hstack([_half(_scale(rng, count, std, 4.6)), _random(rng, count, 16)])


def q8_0(rng: np.random.Generator, count: int, std: float) -> Bytes:
    """Return random Q8_0 blocks: scale, 32 signed bytes (deviation 74)."""
    return np.hstack([_half(_scale(rng, count, std, 74.0)), _random(rng, count, 32)])


def _paired_scales(rng: np.random.Generator, count: int) -> Bytes:
    """Return the 12 bytes of eight 6-bit scales and eight minima, each minimum equal to its scale."""
    low = _random(rng, count, 4)
    nibble = _random(rng, count, 4) & 15
    return np.hstack([low, low, nibble | nibble << 4])


def q4_k(rng: np.random.Generator, count: int, std: float) -> Bytes:
    """Return random Q4_K blocks; a minimum of 7.5 times the scale centres the nibbles (deviation 36.4 * 4.6)."""
    d = _scale(rng, count, std, 36.4 * 4.6)
    return np.hstack([_half(d), _half(7.5 * d), _paired_scales(rng, count), _random(rng, count, 128)])


def q5_k(rng: np.random.Generator, count: int, std: float) -> Bytes:
    """Return random Q5_K blocks, like Q4_K with 5-bit values (deviation 36.4 * 9.2)."""
    d = _scale(rng, count, std, 36.4 * 9.2)
    return np.hstack([_half(d), _half(15.5 * d), _paired_scales(rng, count), _random(rng, count, 160)])


def q6_k(rng: np.random.Generator, count: int, std: float) -> Bytes:
    """Return random Q6_K blocks: 6-bit values less 32 (deviation 18.5) under signed byte scales (deviation 74)."""
    return np.hstack([_random(rng, count, 208), _half(_scale(rng, count, std, 74.0 * 18.5))])


BLOCKS: dict[QuantType, Callable[[np.random.Generator, int, float], Bytes]] = {
    QuantType.Q4_0: q4_0,
    QuantType.Q8_0: q8_0,
    QuantType.Q4_K: q4_k,
    QuantType.Q5_K: q5_k,
    QuantType.Q6_K: q6_k,
}
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q4_K_M", "Q5_K", "Q6_K")


def tensor_type(kind: str, name: str, layer: int, n_layer: int) -> QuantType:
    """Return the type of a matrix; ``Q4_K_M`` gives the sensitive ones six bits as llama.cpp's mixture does."""
    if kind != "Q4_K_M":
        return QuantType[kind]
    eighth = n_layer // 8
    outer = layer < eighth or layer >= n_layer - eighth or (layer - eighth) % 3 == 2
    if name == "output" or (name in ("attn_v", "ffn_down") and outer):
        return QuantType.Q6_K
    return QuantType.Q4_K


def write_random(path: Path, shape: Shape, kind: str, seed: int = 0) -> None:
    """Write a llama model with random weights.

    Parameters
    ----------
    path : pathlib.Path
        File to write.
    shape : Shape
        Sizes; rows of K-quants must be multiples of 256.
    kind : str
        One of `TYPES`.
    seed : int
        Seed of the weights.
    """
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name: str, n_in: int, n_out: int, layer: int = -1) -> None:
        full = f"{name}.weight" if layer < 0 else f"blk.{layer}.{name}.weight"
        quant = tensor_type(kind, name, layer, shape.n_layer)
        std = n_in**-0.5
        if quant in BLOCKS:
            elements, size = gguf.GGML_QUANT_SIZES[quant]
            data = BLOCKS[quant](rng, n_in // elements * n_out, std).reshape(n_out, n_in // elements * size)
            writer.add_tensor(full, data, raw_shape=data.shape, raw_dtype=quant)
            return
        values = rng.standard_normal((n_out, n_in), dtype=np.float32) * np.float32(std)
        if quant == QuantType.BF16:
            data = gguf.quants.quantize(values, quant)
            writer.add_tensor(full, data, raw_shape=data.shape, raw_dtype=quant)
        else:
            writer.add_tensor(full, values.astype(np.float16 if quant == QuantType.F16 else np.float32))

    ones = np.ones(shape.n_embd, np.float32)
    n_kv = shape.n_embd // shape.n_head * shape.n_head_kv
    matrix("token_embd", shape.n_embd, shape.n_vocab)
    writer.add_tensor("output_norm.weight", ones)
    matrix("output", shape.n_embd, shape.n_vocab)
    for layer in range(shape.n_layer):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        matrix("attn_q", shape.n_embd, shape.n_embd, layer)
        matrix("attn_k", shape.n_embd, n_kv, layer)
        matrix("attn_v", shape.n_embd, n_kv, layer)
        matrix("attn_output", shape.n_embd, shape.n_embd, layer)
        matrix("ffn_gate", shape.n_embd, shape.n_ff, layer)
        matrix("ffn_up", shape.n_embd, shape.n_ff, layer)
        matrix("ffn_down", shape.n_ff, shape.n_embd, layer)
    _finish(writer)


def write_f16(source: Path, path: Path) -> None:
    """Write a copy of a model in which every quantised tensor is F16.

    Without quantised activations a difference between two engines is not amplified: such a model shows errors that
    the rounding noise of a quantised one hides.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == gguf.Keys.General.ARCHITECTURE:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        if tensor.tensor_type in (QuantType.F32, QuantType.F16):
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    random = commands.add_parser("random", help="random weights")
    random.add_argument("out", type=Path)
    random.add_argument("shape", choices=SHAPES)
    random.add_argument("type", choices=TYPES)
    plain = commands.add_parser("f16", help="an existing model with F16 weights")
    plain.add_argument("source", type=Path)
    plain.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    if args.command == "random":
        write_random(args.out, SHAPES[args.shape], args.type)
    else:
        write_f16(args.source, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
