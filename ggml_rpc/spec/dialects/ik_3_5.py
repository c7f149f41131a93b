"""Protocols 3.5.1 and 3.5.2 of ik_llama.cpp (from November 2025): the wire of llama.cpp 3.5.0, own ops and types.

The number was not raised when tables changed; a date after the name is the first day of one. The tensor record grew
twice with the number of sources.
"""

from __future__ import annotations

from types import MappingProxyType

from ..enums import GluKind, Prec, ScaleMode, TriKind, UnaryKind
from ..types import TYPES
from .base import RecordLayout, derive, insert_ops, op_table, type_table, without_types
from .llama_3_5 import LLAMA_3_5

_OPS = """
NONE DUP ADD ADD_ID ADD1 ACC SUB MUL DIV SQR SQRT LOG SUM SUM_ROWS MEAN ARGMAX REPEAT REPEAT_BACK CONCAT SILU_BACK NORM
RMS_NORM RMS_NORM_BACK GROUP_NORM FUSED_RMS_NORM FUSED_MUL_UNARY MULTI_ADD MUL_MAT MUL_MAT_ID OUT_PROD FUSED_UP_GATE
MOE_FUSED_UP_GATE MUL_MULTI_ADD SCALE SET CPY CONT RESHAPE VIEW PERMUTE TRANSPOSE GET_ROWS GET_ROWS_BACK SET_ROWS DIAG
DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX SOFT_MAX_BACK ROPE ROPE_BACK ROPE_CACHE ROPE_FAST CLAMP CONV_TRANSPOSE_1D IM2COL
CONV_TRANSPOSE_2D POOL_1D POOL_2D UPSCALE PAD ARANGE TIMESTEP_EMBEDDING ARGSORT ARGSORT_THRESH GROUPED_TOPK LEAKY_RELU
SOFTCAP SOFT_CAP_MAX CONV_2D CONV_2D_DW FLASH_ATTN_EXT FLASH_ATTN_BACK IK_SSM_CONV IK_SSM_SCAN WIN_PART WIN_UNPART
GET_REL_POS ADD_REL_POS UNARY MAP_UNARY MAP_BINARY MAP_CUSTOM1_F32 MAP_CUSTOM2_F32 MAP_CUSTOM3_F32 MAP_CUSTOM1
MAP_CUSTOM2 MAP_CUSTOM3 CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK GLU
"""

# 8 and 15 stand the other way round than in llama.cpp.
_UNARY = (
    UnaryKind.ABS,
    UnaryKind.SGN,
    UnaryKind.NEG,
    UnaryKind.STEP,
    UnaryKind.TANH,
    UnaryKind.ELU,
    UnaryKind.RELU,
    UnaryKind.SIGMOID,
    UnaryKind.GELU_ERF,
    UnaryKind.GELU_QUICK,
    UnaryKind.SILU,
    UnaryKind.HARDSWISH,
    UnaryKind.HARDSIGMOID,
    UnaryKind.SWIGLU,
    UnaryKind.SWIGLU_OAI,
    UnaryKind.GELU,
)

_NOT_IN_IK = ("TQ1_0", "TQ2_0", "NVFP4", "Q2_0")
_LATER = ("Q1_0", "MXFP4_R8")
# Made inside a backend and never sent; its blocks differ from llama.cpp's.
_ACTIVATIONS = ("Q8_K",)


def _types() -> tuple[int, ...]:
    """Return ik_llama.cpp's table: the numbers are the internal ids."""
    ours = {t.id: t.name for t in TYPES if t.name not in (*_NOT_IN_IK, *_ACTIVATIONS)}
    return type_table(ours, 400)


IK_3_5_1 = derive(
    LLAMA_3_5,
    name="ik-3.5.1@2025-11-30",
    family="ik_llama.cpp",
    announce=(3, 5, 1),
    aliases=("ik-3.5.1", "ik_llama.cpp-3.5.1", "ik_llama.cpp-3.5.1@2025-11-30"),
    ops=op_table(_OPS.split()),
    unary=_UNARY,
    glu=tuple(int(k) for k in GluKind if k is not GluKind.SWIGLU_CLAMP),
    types=without_types(_types(), *_LATER),
    enums=MappingProxyType(
        {
            **LLAMA_3_5.enums,
            "prec": MappingProxyType({0: int(Prec.DEFAULT), 1: int(Prec.F32)}),
            "scale_mode": MappingProxyType({int(m): int(m) for m in (ScaleMode.NEAREST, ScaleMode.BILINEAR)}),
        }
    ),
    ik_meaning=True,
)

IK_3_5_1_HADAMARD = derive(
    IK_3_5_1,
    name="ik-3.5.1@2025-12-04",
    announce=(3, 5, 1),
    aliases=("ik_llama.cpp-3.5.1@2025-12-04",),
    ops=insert_ops(IK_3_5_1.ops, 33, "HADAMARD"),
)

IK_3_5_1_REDUCE = derive(
    IK_3_5_1_HADAMARD,
    name="ik-3.5.1@2025-12-24",
    announce=(3, 5, 1),
    aliases=("ik_llama.cpp-3.5.1@2025-12-24",),
    ops=insert_ops(IK_3_5_1_HADAMARD.ops, 92, "REDUCE", "FAKE_CPY", "FUSED_NORM"),
)

IK_3_5_2_JANUARY = derive(
    IK_3_5_1_REDUCE,
    name="ik-3.5.2@2026-01-10",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-01-10",),
)

IK_3_5_2_CUMSUM = derive(
    IK_3_5_2_JANUARY,
    name="ik-3.5.2@2026-02-16",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-02-16",),
    ops=insert_ops(IK_3_5_2_JANUARY.ops, 81, "CUMSUM", "L2_NORM", "TRI", "FILL", "SOLVE_TRI"),
    unary=(*_UNARY, UnaryKind.EXP, UnaryKind.SOFTPLUS),
    enums=MappingProxyType(
        {
            **IK_3_5_1.enums,
            "tri": MappingProxyType(
                {
                    0: int(TriKind.LOWER),
                    1: int(TriKind.UPPER),
                    2: int(TriKind.LOWER_DIAG),
                    3: int(TriKind.UPPER_DIAG),
                }
            ),
        }
    ),
)

IK_3_5_2_BICUBIC = derive(
    IK_3_5_2_CUMSUM,
    name="ik-3.5.2@2026-02-19",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-02-19",),
    enums=MappingProxyType({**IK_3_5_2_CUMSUM.enums, "scale_mode": LLAMA_3_5.enums["scale_mode"]}),
)

IK_3_5_2_DELTA_NET = derive(
    IK_3_5_2_BICUBIC,
    name="ik-3.5.2@2026-02-25",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-02-25",),
    ops=insert_ops(IK_3_5_2_BICUBIC.ops, 86, "DELTA_NET"),
)

IK_3_5_2_Q1_0 = derive(
    IK_3_5_2_DELTA_NET,
    name="ik-3.5.2@2026-04-02",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-04-02",),
    types=without_types(_types(), "MXFP4_R8"),
)

IK_3_5_2_RMS_RMS = derive(
    IK_3_5_2_Q1_0,
    name="ik-3.5.2@2026-04-13",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-04-13",),
    ops=insert_ops(IK_3_5_2_Q1_0.ops, 101, "FUSED_RMS_RMS_ADD"),
)

IK_3_5_2_12_SOURCES = derive(
    IK_3_5_2_RMS_RMS,
    name="ik-3.5.2@2026-05-19",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-05-19",),
    record=RecordLayout(max_src=12, has_use_count=False),
)

IK_3_5_2_16_SOURCES = derive(
    IK_3_5_2_12_SOURCES,
    name="ik-3.5.2@2026-06-29",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-06-29",),
    record=RecordLayout(max_src=16, has_use_count=False),
)

IK_3_5_2_BLEND = derive(
    IK_3_5_2_16_SOURCES,
    name="ik-3.5.2@2026-07-02",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-02",),
    ops=insert_ops(IK_3_5_2_16_SOURCES.ops, 102, "BLEND"),
)

IK_3_5_2_INDEXER = derive(
    IK_3_5_2_BLEND,
    name="ik-3.5.2@2026-07-09",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-09",),
    ops=insert_ops(IK_3_5_2_BLEND.ops, 103, "INDEXER_TOPK"),
)

IK_3_5_2_SINKHORN = derive(
    IK_3_5_2_INDEXER,
    name="ik-3.5.2@2026-07-12",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-12",),
    ops=insert_ops(IK_3_5_2_INDEXER.ops, 104, "SINKHORN"),
)

IK_3_5_2_MASK_TOPK = derive(
    IK_3_5_2_SINKHORN,
    name="ik-3.5.2@2026-07-13",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-13",),
    ops=insert_ops(IK_3_5_2_SINKHORN.ops, 104, "MASK_TOPK"),
)

IK_3_5_2_HC = derive(
    IK_3_5_2_MASK_TOPK,
    name="ik-3.5.2@2026-07-22",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-22",),
    ops=insert_ops(IK_3_5_2_MASK_TOPK.ops, 106, "HC_PRE", "HC_POST", "MASK_TO_IDX"),
    unary=(*IK_3_5_2_CUMSUM.unary, UnaryKind.SQRT_SOFTPLUS),
)

IK_3_5_2_LATENT = derive(
    IK_3_5_2_HC,
    name="ik-3.5.2@2026-07-23",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-23",),
    ops=insert_ops(IK_3_5_2_HC.ops, 109, "LATENT_ATTN"),
)

IK_3_5_2_DS4 = derive(
    IK_3_5_2_LATENT,
    name="ik-3.5.2@2026-07-25",
    announce=(3, 5, 2),
    aliases=("ik_llama.cpp-3.5.2@2026-07-25",),
    ops=insert_ops(IK_3_5_2_LATENT.ops, 110, "DS4_COMP"),
)

IK_3_5_2 = derive(
    IK_3_5_2_DS4,
    name="ik-3.5.2",
    announce=(3, 5, 2),
    aliases=("ik", "ik-3.5", "ik-3.5.2@2026-07-28", "ik_llama.cpp-3.5.2", "ik_llama.cpp-3.5.2@2026-07-28"),
    types=_types(),
)

TABLES = (
    IK_3_5_1,
    IK_3_5_1_HADAMARD,
    IK_3_5_1_REDUCE,
    IK_3_5_2_JANUARY,
    IK_3_5_2_CUMSUM,
    IK_3_5_2_BICUBIC,
    IK_3_5_2_DELTA_NET,
    IK_3_5_2_Q1_0,
    IK_3_5_2_RMS_RMS,
    IK_3_5_2_12_SOURCES,
    IK_3_5_2_16_SOURCES,
    IK_3_5_2_BLEND,
    IK_3_5_2_INDEXER,
    IK_3_5_2_SINKHORN,
    IK_3_5_2_MASK_TOPK,
    IK_3_5_2_HC,
    IK_3_5_2_LATENT,
    IK_3_5_2_DS4,
    IK_3_5_2,
)
