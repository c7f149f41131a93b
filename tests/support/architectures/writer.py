"""Write a tiny model with random weights as a GGUF file.

What a tensor is drawn from follows from its name: norms near 1, decays negative, gates between 0 and 1, matrices such
that they keep the size of what they multiply. Routers decide by large margins, since two engines that round
differently would send a token of a near tie to different experts: tokens lie along directions that routers look for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QuantType
from numpy.typing import NDArray

from tests.support.random_gguf import add_value, cached_file, finish

from .model import TinyModel

REVISION = 1
"""Counts changes of what is written, so that files of before are not taken for current ones."""

KINDS = ("F32", "F16", "Q8_0", "Q4_0", "Q5_1")
"""Types of the matrices; all else is F32."""

MARGINS = (8.0, 6.0)  # a token's component along its experts' directions; its norm is about 11 without

Floats = NDArray[np.float32]
Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]


def _normal(std: float, mean: float = 0.0) -> Draw:
    return lambda rng, shape: mean + std * rng.standard_normal(shape)


def _uniform(low: float, high: float) -> Draw:
    return lambda rng, shape: rng.uniform(low, high, shape)


def _decay(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return -np.exp(rng.uniform(-1.5, 2.0, shape))


def _matrix(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return shape[-1] ** -0.5 * rng.standard_normal(shape)


# The first pattern that the name matches; shapes in NumPy's order.
RULES: tuple[tuple[str, Draw], ...] = (
    (r"ssm_dt\.bias$", _uniform(-4.0, -1.0)),
    (r"(norm|_ln)\.bias$", _normal(0.1)),
    (r"exp_probs_b\.bias$", _normal(0.01)),
    (r"\.bias$", _normal(0.1)),
    (r"ssm_a$", _decay),
    (r"ssm_d$", _normal(0.2, 1.0)),
    (r"time_mix_decay\.weight$", _uniform(-5.0, 0.0)),
    (r"lerp", _uniform(0.0, 1.0)),
    (r"time_mix_(first|r_k)\.weight$", _normal(0.3)),
    (r"time_mix_k_[ka]\.weight$", _normal(0.1, 0.9)),
    (r"time_mix_[wav]0\.weight$", _normal(0.5)),
    (r"(norm|_ln|norm_2|correct_scale)(\.weight)?$", _normal(0.1, 1.0)),
    (r"rope_(factors_|freqs)", lambda rng, shape: np.sort(np.exp(rng.uniform(0.0, 2.0, shape)))),
    (r"(attn_sinks|attn_rel_b|altup_router)\.weight$", _normal(1.0)),
    (r"altup_(predict|correct)_coef\.weight$", _normal(0.2)),
    (r"(conv1d\w*|shortconv\.conv)\.weight$", _normal(0.5)),
    (r"per_layer_token_embd\.weight$", _normal(1.0 / 16)),
    (r"(position_embd|token_types)\.weight$", _normal(0.3)),
    (r"_scale\.weight$", _normal(0.05, 0.5)),
    (r"_base\.weight$", _normal(0.3)),
    (r"_ape\.weight$", _normal(0.3)),
)
# Matrices that quantisers leave alone: routers, convolutions, small factors of other matrices.
PLAIN = re.compile(
    r"_inp|norm|conv|lerp|altup|laurel|model_proj|position_embd|token_types|rel_b|sinks|time_mix_([wavg][012]|first|decay|r_k|k_[ka])"
    r"|hc_|indexer|_ape|tid2eid|rope_|ssm_(f|g|beta|ba)|attn_(k_b|v_b|kv_a_mqa)"
)


def write(path: Path, model: TinyModel, kind: str) -> None:
    """Write a model.

    Parameters
    ----------
    path : pathlib.Path
        File to write.
    model : TinyModel
        Its description.
    kind : str
        Type of the matrices, one of `KINDS`.
    """
    writer = gguf.GGUFWriter(path, model.arch)
    for key, value in model.metadata.items():
        add_value(writer, key if key.startswith("tokenizer.") else f"{model.arch}.{key}", value)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(zlib.crc32(model.name.encode()))
    directions = _directions(rng, model)
    for bare, ne in model.tensors.items():
        name = bare if bare.endswith(model.unnamed) else f"{bare}.weight"
        _add_tensor(writer, name, _values(rng, model, name, tuple(reversed(ne)), directions), kind)
    finish(writer)


def cached(model: TinyModel, kind: str) -> Path:
    """Return the file of a model in the cache folder, written at the first call.

    Parameters
    ----------
    model : TinyModel
        Its description.
    kind : str
        Type of its matrices, one of `KINDS`.
    """
    described = f"{REVISION} {model} {list(model.tensors.items())} {sorted(model.metadata.items())}"
    return cached_file(f"{model.name}-{kind}", described, lambda path: write(path, model, kind))


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: NDArray[np.float64], kind: str) -> None:
    if values.dtype == np.int32:
        writer.add_tensor(name, values)
        return
    quant = QuantType[kind]
    if values.ndim < 2 or PLAIN.search(name) or not name.endswith(".weight"):
        quant = QuantType.F32
    elif values.shape[-1] % gguf.GGML_QUANT_SIZES[quant][0]:
        quant = QuantType.F16  # rows that hold no whole block, as quantisers do
    data = gguf.quants.quantize(values.astype(np.float32), quant)
    writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=quant)


def _directions(rng: np.random.Generator, model: TinyModel) -> NDArray[np.float64]:
    """Return a direction for each expert."""
    n_embd = model.metadata["embedding_length"]
    assert isinstance(n_embd, int)
    return np.linalg.qr(rng.standard_normal((n_embd, max(model.n_expert, 1))))[0].T[: model.n_expert]


def _values(
    rng: np.random.Generator, model: TinyModel, name: str, shape: tuple[int, ...], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    if name == "token_embd.weight":
        values = rng.standard_normal(shape)
        if len(directions):
            order = rng.permuted(np.tile(np.arange(len(directions)), (shape[0], 1)), axis=1)
            for rank, margin in enumerate(MARGINS):
                values += margin * directions[order[:, rank]]
        return model.embedding * values
    if name.endswith("ffn_gate_inp.weight"):
        layer = int(re.findall(r"\d+", name)[0])
        return 0.3 * np.roll(directions, layer, axis=0)  # other layers, other experts
    if name.endswith("tid2eid.weight"):
        chosen = rng.permuted(np.tile(np.arange(model.n_expert), (shape[0], 1)), axis=1)
        return chosen[:, : shape[1]].astype(np.int32)
    draw = next((draw for pattern, draw in RULES if re.search(pattern, name)), _matrix)
    gain = model.query if re.search(r"attn_q(_norm)?\.weight$", name) else 1.0
    gain *= model.branch if re.search(r"post\w*_norm\.weight$", name) else 1.0
    return gain * draw(rng, shape)
