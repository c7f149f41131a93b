"""Find weights that are no numbers before they are sent to a device."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ggml_rpc.spec.types import TYPE_BY_NAME, TypeSpec

from .gguf_file import GgufTensor

_CHUNK = 1 << 19
"""Bytes looked at at once: so much stays in a second-level cache while each field of a block is read."""


class _Field(NamedTuple):
    """A floating-point number in a block: not finite if all bits of `mask` are set."""

    offset: int
    dtype: str
    mask: int


def _f16(*offsets: int) -> tuple[_Field, ...]:
    return tuple(_Field(offset, "<u2", 0x7C00) for offset in offsets)


_F32 = _Field(0, "<u4", 0x7F800000)
_BF16 = (_Field(0, "<u2", 0x7F80),)
_E8M0 = (_Field(0, "u1", 0xFF),)

# In groups of rows the numbers of a block stand in front of its codes, first those of all rows, then the second ones.
_FIELDS: Mapping[str, tuple[_Field, ...]] = MappingProxyType(
    {
        "F32": (_F32,),
        "F64": (_Field(0, "<u8", 0x7FF0000000000000),),
        "F16": _f16(0),
        "BF16": _BF16,
        "BF16_R16": _BF16,
        "MXFP4": _E8M0,
        "MXFP4_R8": _E8M0,
        "Q8_K": (_F32,),
        # The bits of its half are spread: sign and upper exponent in the last of four words, the rest of the exponent
        # in the third.
        "IQ1_M": (_Field(52, "<u4", 0x7000C000),),
        **dict.fromkeys(("Q4_0", "Q5_0", "Q6_0", "Q8_0", "Q1_0", "Q2_0", "IQ4_NL", "IQ4_XS"), _f16(0)),
        **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), _f16(0)),
        **dict.fromkeys(("IQ2_K", "IQ3_K", "IQ4_K", "IQ5_K", "IQ6_K"), _f16(0)),
        **dict.fromkeys(("Q4_1", "Q5_1", "Q8_1", "Q4_K", "Q5_K"), _f16(0, 2)),
        "Q2_K": _f16(80, 82),
        "Q3_K": _f16(108),
        "Q6_K": _f16(208),
        "TQ1_0": _f16(52),
        "TQ2_0": _f16(64),
        **dict.fromkeys(("Q4_0_R8", "Q5_0_R4", "Q6_0_R4", "Q8_0_R8", "IQ4_NL_R4", "IQ4_XS_R8"), _f16(0)),
        **dict.fromkeys(("Q3_K_R4", "Q6_K_R4", "Q8_K_R8", "Q8_K_R16"), _f16(0)),
        **dict.fromkeys(("IQ2_XXS_R4", "IQ2_XS_R4", "IQ2_S_R4", "IQ3_XXS_R4", "IQ3_S_R4"), _f16(0)),
        **dict.fromkeys(("IQ2_K_R4", "IQ3_K_R4", "IQ4_K_R4", "IQ5_K_R4"), _f16(0)),
        **dict.fromkeys(("Q2_K_R4", "Q4_K_R4", "Q5_K_R4"), _f16(0, 2)),
    }
)
# No bits of these are no number: whole numbers, and scales of 4 bits of exponent whose last value stands for zero.
_ALWAYS_FINITE = frozenset({"I8", "I16", "I32", "I64", "NVFP4"})


def has_nonfinite(tensor: GgufTensor) -> bool:
    """Tell whether a tensor holds NaN or an infinity.

    Plain types are looked at whole. Of quantised ones only the floating-point numbers in each block, and those in front
    of each row, are: without them every code gives a finite weight, so nothing is decoded. That holds of all types of
    `ggml_rpc.spec.types`; integers and NVFP4 have no such number and are always finite.

    Parameters
    ----------
    tensor : GgufTensor
        A tensor of an open file. Its pages are read once, a chunk at a time.

    Raises
    ------
    ModelError
        If the file was closed.
    """
    return nonfinite_in(tensor.data, tensor.spec, tensor.ne[0])


def nonfinite_in(data: np.ndarray, spec: TypeSpec, ne0: int) -> bool:
    """Tell whether rows of a type hold NaN or an infinity; see `has_nonfinite`.

    Parameters
    ----------
    data : ndarray of uint8
        Whole rows, or whole groups of rows of an interleaved type, one after the other.
    spec : TypeSpec
        Their type.
    ne0 : int
        Elements of a row.
    """
    rows = spec.row_group
    header, block = rows * spec.row_meta, rows * spec.bytes
    fields = [_Field(f.offset * rows, f.dtype, f.mask) for f in _FIELDS.get(spec.name, ())]
    if not header:
        return _any_in_blocks(data, block, fields, rows)
    groups = data.reshape(-1, rows * spec.row_bytes(ne0))
    # A header begins with its scale, a half if it has no room for more; no such type has numbers in its blocks too.
    half = spec.row_meta == 2
    scale = _f16(0)[0] if half else _F32
    return _any_in_blocks(groups.reshape(-1), groups.shape[1], [scale], rows, spec.row_meta)


def _any_in_blocks(data: np.ndarray, block: int, fields: list[_Field], count: int, step: int = 0) -> bool:
    """Tell whether one of the `count` numbers of a field, `step` bytes apart, is not finite in any block."""
    blocks = max(1, _CHUNK // block)
    for begin in range(0, len(data), blocks * block):
        chunk = data[begin : begin + blocks * block]
        n = len(chunk) // block
        for offset, dtype, mask in fields:
            item = np.dtype(dtype)
            apart = step or item.itemsize
            if apart * count == block:  # nothing but numbers
                numbers = chunk.view(item)
            else:
                numbers = np.ndarray((n, count), item, chunk, offset, (block, apart))
            # The greatest of the masked numbers: two passes at the speed of vectors, where `==` and `any` take three.
            if int((numbers & item.type(mask)).max()) == mask:
                return True
    return False


def checked_types() -> frozenset[str]:
    """Return the types that `has_nonfinite` can judge."""
    in_rows = {name for name, spec in TYPE_BY_NAME.items() if spec.row_meta}
    return frozenset(_FIELDS) | _ALWAYS_FINITE | in_rows
