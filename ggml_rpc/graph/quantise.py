"""Convert NumPy arrays to a tensor type's bytes and back.

Plain types are NumPy's own work. Blocks of quantised types are made and read by the reference code of the `gguf`
package, which is imported only then.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from ggml_rpc.errors import GraphError, RpcError
from ggml_rpc.extras import require
from ggml_rpc.spec.types import TYPE_BY_NAME, TypeSpec

_NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}

ENCODED = (*_NUMPY, "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
"""Types that `quantise` makes. The others of llama.cpp need a search or an importance matrix: use llama-quantize."""

DECODED = (
    *ENCODED,
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "NVFP4", "IQ4_NL", "IQ4_XS"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
)
"""Types that `dequantise` reads."""


def quantise(array: np.ndarray, type: str) -> np.ndarray:
    """Return the bytes of an array as a tensor of a type.

    Parameters
    ----------
    array : ndarray
        Numbers, of at least one dimension; the last one is a tensor's row.
    type : str
        One of `ENCODED`.

    Returns
    -------
    ndarray of uint8
        Shape ``(*array.shape[:-1], row_bytes)``, contiguous.

    Raises
    ------
    GraphError
        If the type is not one of `ENCODED`, rows are no whole number of its blocks, or the array holds what the type
        cannot: no real numbers, numbers beyond its range, NaN or infinities in blocks.
    RpcError
        If the type needs the `gguf` package and it is not installed.
    """
    spec = _spec(type, ENCODED, "made")
    array = np.asarray(array)
    if array.dtype.kind not in "fiub" or array.ndim == 0:
        raise GraphError(f"{type} holds rows of real numbers, not a {array.dtype} array of shape {array.shape}")
    _check_row(spec, array.shape)
    if type in _NUMPY:
        rows = _narrowed(array, np.dtype(_NUMPY[type]))
    elif type == "BF16":
        rows = _to_bf16(_narrowed(array, np.dtype("<f4")))
    else:
        values = _narrowed(array, np.dtype("<f4"))
        if not np.isfinite(values).all():
            raise GraphError(f"the array holds NaN or infinities, which have no meaning in blocks of {type}")
        gguf = _gguf(type)
        # Scales of denormals overflow on the way to their inverse.
        with np.errstate(all="ignore"):
            rows = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type])
    return np.ascontiguousarray(rows).view(np.uint8).reshape(*array.shape[:-1], spec.row_bytes(array.shape[-1]))


def dequantise(data: bytes | bytearray | memoryview | np.ndarray, type: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of a tensor's bytes.

    Parameters
    ----------
    data : bytes-like or ndarray
        Rows of the type, one after the other.
    type : str
        One of `DECODED`.
    shape : tuple of int
        NumPy's shape of the tensor (the last dimension is the fastest).

    Returns
    -------
    ndarray of float32
        Of that shape; a copy.

    Raises
    ------
    GraphError
        If the type is not one of `DECODED`, or shape and bytes do not fit it.
    RpcError
        If the type needs the `gguf` package and it is not installed.
    """
    spec = _spec(type, DECODED, "read")
    array = data if isinstance(data, np.ndarray) else np.asarray(memoryview(data))
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if not shape or min(shape) < 0:
        raise GraphError(f"{shape} is no shape of rows")
    _check_row(spec, shape)
    nbytes = math.prod(shape[:-1]) * spec.row_bytes(shape[-1])
    if raw.nbytes != nbytes:
        raise GraphError(f"a {type} tensor of shape {shape} has {nbytes:,} bytes, not {raw.nbytes:,}")
    if type in _NUMPY:
        with np.errstate(over="ignore"):  # from F64
            return raw.view(_NUMPY[type]).astype(np.float32).reshape(shape)
    if type == "BF16":
        return (raw.view("<u2").astype("<u4") << 16).view(np.float32).reshape(shape)
    gguf = _gguf(type)
    # Blocks of unchecked bytes may hold infinite scales.
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(raw.reshape(-1, spec.bytes), gguf.GGMLQuantizationType[type])
    return np.asarray(values, np.float32).reshape(shape)


def _spec(type: str, known: tuple[str, ...], done: str) -> TypeSpec:
    if type not in known:
        raise GraphError(f"{type!r} cannot be {done} here; types that can: {', '.join(known)}")
    return TYPE_BY_NAME[type]


def _check_row(spec: TypeSpec, shape: tuple[int, ...]) -> None:
    if shape[-1] % spec.block:
        raise GraphError(f"rows of {shape[-1]} are no whole number of {spec.name} blocks of {spec.block}")


def _narrowed(array: np.ndarray, dtype: np.dtype[np.floating]) -> np.ndarray:
    """Return the array as `dtype`; a finite number that would become infinite is an error."""
    with np.errstate(over="ignore"):
        rows = array.astype(dtype, copy=False)
    if rows is not array:
        _check_range(array, np.isinf(rows), dtype.name)
    return rows


def _to_bf16(array: np.ndarray) -> np.ndarray:
    """Round to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array).view("<u4")
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    # Rounding would carry a NaN with a full mantissa into the sign.
    rows = np.where(np.isnan(array), bits >> 16 | 64, rounded).astype("<u2")
    _check_range(array, (rows & 0x7FFF) == 0x7F80, "bfloat16")
    return rows


def _check_range(array: np.ndarray, infinite: np.ndarray, name: str) -> None:
    if infinite.any() and np.isfinite(array[infinite]).any():
        raise GraphError(f"the array holds numbers beyond the range of {name}")


def _gguf(type: str) -> ModuleType:
    package = require("gguf", type)
    if type not in package.GGMLQuantizationType.__members__:
        raise RpcError(f"the installed gguf package does not know {type}: pip install -U gguf")
    return package
