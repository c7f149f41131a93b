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
        Internal id: the number of the type in protocol 8.0.0, or in ik_llama.cpp for the types that only it has.
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
    row_group : int
        Rows that are interleaved: so many follow each other in one run of memory, and none can be read alone.
    """

    id: int
    name: str
    block: int
    bytes: int
    is_quantized: bool = False
    row_meta: int = 0
    row_group: int = 1

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


def _quant(id: int, name: str, block: int, bytes: int, *, header: int = 0, group: int = 1) -> TypeSpec:
    return TypeSpec(id, name, block, bytes, is_quantized=True, row_meta=header, row_group=group)


# Ids that are missing below 43 (4, 5, 31 to 33, 36 to 38) are dead: they once named types that no longer exist. From
# 133 on they are ik_llama.cpp's; its types that only a backend makes for itself (Q8_K16 and the like) never travel and
# are missing, as are the packings for old ARM cores (31 to 33) and I2_S (36), which has no product.
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
    _quant(133, "Q6_0", 32, 26),
    _quant(134, "IQ1_BN", 64, 13, header=2),
    _quant(135, "IQ2_BN", 64, 16, header=4),
    _quant(137, "IQ2_K", 256, 76),
    _quant(138, "IQ3_K", 256, 110),
    _quant(139, "IQ4_K", 256, 144),
    _quant(140, "IQ5_K", 256, 176),
    _quant(141, "IQ6_K", 256, 212),
    _quant(144, "IQ4_KS", 256, 136, header=4),
    _quant(145, "IQ2_KS", 256, 70, header=2),
    _quant(146, "IQ4_KSS", 256, 128, header=4),
    _quant(151, "Q8_KV", 32, 32, header=8),
    _quant(152, "IQ5_KS", 256, 168, header=4),
    _quant(153, "IQ2_KT", 256, 68, header=4),
    _quant(154, "IQ3_KT", 256, 100, header=4),
    _quant(155, "IQ4_KT", 256, 128, header=4),
    _quant(156, "IQ3_KS", 256, 102, header=2),
    _quant(157, "IQ2_KL", 256, 86, header=2),
    _quant(158, "IQ1_KT", 256, 56, header=4),
    _quant(202, "Q4_0_R8", 32, 18, group=8),
    _quant(206, "Q5_0_R4", 32, 22, group=4),
    _quant(208, "Q8_0_R8", 32, 34, group=8),
    _quant(210, "Q2_K_R4", 256, 84, group=4),
    _quant(211, "Q3_K_R4", 256, 110, group=4),
    _quant(212, "Q4_K_R4", 256, 144, group=4),
    _quant(213, "Q5_K_R4", 256, 176, group=4),
    _quant(214, "Q6_K_R4", 256, 210, group=4),
    _quant(216, "IQ2_XXS_R4", 256, 66, group=4),
    _quant(217, "IQ2_XS_R4", 256, 74, group=4),
    _quant(218, "IQ3_XXS_R4", 256, 98, group=4),
    _quant(219, "IQ1_S_R4", 32, 6, header=2, group=4),
    _quant(220, "IQ4_NL_R4", 32, 18, group=4),
    _quant(221, "IQ3_S_R4", 256, 110, group=4),
    _quant(222, "IQ2_S_R4", 256, 82, group=4),
    _quant(223, "IQ4_XS_R8", 256, 136, group=8),
    _quant(229, "IQ1_M_R4", 32, 7, header=2, group=4),
    TypeSpec(230, "BF16_R16", 1, 2, row_group=16),
    _quant(233, "Q6_0_R4", 32, 26, group=4),
    _quant(335, "IQ2_BN_R4", 64, 16, header=4, group=4),
    _quant(337, "IQ2_K_R4", 256, 76, group=4),
    _quant(338, "IQ3_K_R4", 256, 110, group=4),
    _quant(339, "IQ4_K_R4", 256, 144, group=4),
    _quant(340, "IQ5_K_R4", 256, 176, group=4),
    _quant(344, "IQ4_KS_R4", 256, 136, header=4, group=4),
    _quant(352, "IQ5_KS_R4", 256, 168, header=4, group=4),
    _quant(353, "MXFP4_R8", 32, 17, group=8),
    _quant(397, "Q8_K_R16", 256, 258, group=16),
    _quant(398, "Q8_KV_R8", 32, 32, header=4, group=8),
    _quant(399, "Q8_K_R8", 256, 258, group=8),
)

TYPE_BY_ID: Mapping[int, TypeSpec] = MappingProxyType({t.id: t for t in TYPES})
TYPE_BY_NAME: Mapping[str, TypeSpec] = MappingProxyType({t.name: t for t in TYPES})

TYPE_COUNT = 1 + max(TYPE_BY_ID)
"""One more than the largest internal id; the table has holes below it."""
