"""Tensor types: one row a type, with its internal id, block and bytes per block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class TypeSpec:
    """Describe one tensor type.

    Parameters
    ----------
    id : int
        Internal id, the number of the type in protocol 8.0.0.
    name : str
        Name as in GGUF tools, upper case.
    block : int
        Elements per block; 1 for plain types.
    bytes : int
        Bytes per block.
    is_quantized : bool
        Whether clients treat the type as quantised (they then send INIT_TENSOR for odd row lengths).
    row_meta : int
        Extra bytes at the start of every row; 0 for all types of llama.cpp.
    """

    id: int
    name: str
    block: int
    bytes: int
    is_quantized: bool = False
    row_meta: int = 0

    def row_bytes(self, ne0: int) -> int:
        """Return the bytes of one row of `ne0` elements.

        Raises
        ------
        ValueError
            If `ne0` is negative or not a whole number of blocks.
        """
        if ne0 < 0 or ne0 % self.block:
            raise ValueError(f"{self.name}: {ne0} is not a whole number of blocks of {self.block}")
        return self.row_meta + ne0 // self.block * self.bytes


def _plain(id: int, name: str, bytes: int) -> TypeSpec:
    return TypeSpec(id, name, 1, bytes)


def _quant(id: int, name: str, block: int, bytes: int) -> TypeSpec:
    return TypeSpec(id, name, block, bytes, is_quantized=True)


# Ids that are missing (4, 5, 31 to 33, 36 to 38) are dead: they once named types that no longer exist.
TYPES: tuple[TypeSpec, ...] = (
    _plain(0, "F32", 4),
    _plain(1, "F16", 2),
    _quant(2, "Q4_0", 32, 18),
    _quant(3, "Q4_1", 32, 20),
    _quant(6, "Q5_0", 32, 22),
    _quant(7, "Q5_1", 32, 24),
    _quant(8, "Q8_0", 32, 34),
    _quant(9, "Q8_1", 32, 36),
    _quant(10, "Q2_K", 256, 84),
    _quant(11, "Q3_K", 256, 110),
    _quant(12, "Q4_K", 256, 144),
    _quant(13, "Q5_K", 256, 176),
    _quant(14, "Q6_K", 256, 210),
    _quant(15, "Q8_K", 256, 292),
    _quant(16, "IQ2_XXS", 256, 66),
    _quant(17, "IQ2_XS", 256, 74),
    _quant(18, "IQ3_XXS", 256, 98),
    _quant(19, "IQ1_S", 256, 50),
    _quant(20, "IQ4_NL", 32, 18),
    _quant(21, "IQ3_S", 256, 110),
    _quant(22, "IQ2_S", 256, 82),
    _quant(23, "IQ4_XS", 256, 136),
    _plain(24, "I8", 1),
    _plain(25, "I16", 2),
    _plain(26, "I32", 4),
    _plain(27, "I64", 8),
    _plain(28, "F64", 8),
    _quant(29, "IQ1_M", 256, 56),
    _plain(30, "BF16", 2),
    _quant(34, "TQ1_0", 256, 54),
    _quant(35, "TQ2_0", 256, 66),
    _quant(39, "MXFP4", 32, 17),
    _quant(40, "NVFP4", 64, 36),
    _quant(41, "Q1_0", 128, 18),
    _quant(42, "Q2_0", 64, 18),
)

TYPE_BY_ID: Mapping[int, TypeSpec] = MappingProxyType({t.id: t for t in TYPES})
TYPE_BY_NAME: Mapping[str, TypeSpec] = MappingProxyType({t.name: t for t in TYPES})

TYPE_COUNT = 1 + max(TYPE_BY_ID)
"""One more than the largest internal id; the table has holes below it."""
