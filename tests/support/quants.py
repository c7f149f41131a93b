"""Values of quantised blocks: the gguf package's decoders, and what it lacks."""

from __future__ import annotations

import gguf
import numpy as np
from gguf import quants

from ggml_rpc.spec.types import TYPE_BY_NAME


def _bits(raw: np.ndarray, width: int) -> np.ndarray:
    """Return the fields of `width` bits of blocks that begin with a half-precision scale, low bits first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    fields: np.ndarray = (raw[:, 2:, None] >> shifts) & ((1 << width) - 1)
    return np.asarray(fields.reshape(len(raw), -1), np.float32)


def _scale(raw: np.ndarray) -> np.ndarray:
    return np.asarray(raw[:, :2].copy().view("<f2"), np.float32)


def decode(raw: np.ndarray, type_name: str) -> np.ndarray:
    """Return the values of rows of blocks.

    Parameters
    ----------
    raw : ndarray of uint8
        Whole blocks along the last axis.
    type_name : str
        Name of the type.

    Returns
    -------
    ndarray of float32
        Of `raw`'s shape but for the last axis, which has the elements of the blocks.
    """
    if type_name not in ("Q1_0", "Q2_0"):
        return np.asarray(quants.dequantize(raw, gguf.GGMLQuantizationType[type_name]), np.float32)
    blocks = raw.reshape(-1, TYPE_BY_NAME[type_name].bytes)
    codes = 2 * _bits(blocks, 1) - 1 if type_name == "Q1_0" else _bits(blocks, 2) - 1
    return np.asarray((_scale(blocks) * codes).reshape(*raw.shape[:-1], -1), np.float32)
