"""Protocol 7.0.0 of llama.cpp (builds of early October 2026). Stated in full; other dialects derive from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from types import MappingProxyType

from ..commands import Command
from ..enums import GluKind, OpHint, PoolKind, Prec, ScaleMode, SortOrder, TriKind, UnaryKind
from ..types import TYPE_BY_ID
from .base import DEAD, Dialect, GraphCache, HashCacheRule, RecordLayout, op_table

_COMMANDS = (
    Command.ALLOC_BUFFER,
    Command.GET_ALIGNMENT,
    Command.GET_MAX_SIZE,
    Command.BUFFER_GET_BASE,
    Command.FREE_BUFFER,
    Command.BUFFER_CLEAR,
    Command.SET_TENSOR,
    Command.SET_TENSOR_HASH,
    Command.GET_TENSOR,
    Command.COPY_TENSOR,
    Command.GRAPH_COMPUTE,
    Command.GET_DEVICE_MEMORY,
    Command.INIT_TENSOR,
    Command.GET_ALLOC_SIZE,
    Command.HELLO,
    Command.DEVICE_COUNT,
    Command.GRAPH_RECOMPUTE,
    Command.MEMSET_TENSOR,
)

_OPS = """
NONE DUP ADD ADD_ID ADD1 ACC SUB MUL DIV SQR SQRT LOG SIN COS SUM SUM_ROWS CUMSUM MEAN ARGMAX COUNT_EQUAL REPEAT
REPEAT_BACK CONCAT SILU_BACK NORM RMS_NORM RMS_NORM_BACK GROUP_NORM L2_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE SET CPY
CONT RESHAPE VIEW PERMUTE TRANSPOSE GET_ROWS GET_ROWS_BACK SET_ROWS DIAG DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX
SOFT_MAX_BACK ROPE ROPE_BACK CLAMP CONV_TRANSPOSE_1D IM2COL IM2COL_BACK IM2COL_3D COL2IM_1D CONV_2D CONV_3D CONV_2D_DW
CONV_TRANSPOSE_2D POOL_1D POOL_2D POOL_2D_BACK UPSCALE PAD PAD_REFLECT_1D ROLL ARANGE TIMESTEP_EMBEDDING ARGSORT TOP_K
LEAKY_RELU TRI FILL FLASH_ATTN_EXT FLASH_ATTN_BACK SSM_CONV SSM_SCAN WIN_PART WIN_UNPART GET_REL_POS ADD_REL_POS
RWKV_WKV6 GATED_LINEAR_ATTN RWKV_WKV7 SOLVE_TRI GATED_DELTA_NET LIGHTNING_INDEXER DSV4_HC_COMB DSV4_HC_PRE DSV4_HC_POST
UNARY MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CUSTOM CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK OPT_STEP_ADAMW OPT_STEP_SGD
GLU
"""


_UNARY = (kind for kind in UnaryKind if kind <= UnaryKind.TRUNC)
_TYPE_COUNT = 43


def _same(kinds: Iterable[IntEnum]) -> Mapping[int, int]:
    """Map each value to itself: internal numbers are those of this protocol."""
    return MappingProxyType({int(k): int(k) for k in kinds})


LLAMA_7_0 = Dialect(
    name="7.0.0",
    family="llama.cpp",
    announce=(7, 0, 0),
    aliases=("7.0", "7", "llama.cpp-7.0.0", "llama.cpp-7.0"),
    hello_request=24,
    hello_reply=28,
    commands=MappingProxyType({c: int(c) for c in _COMMANDS}),
    command_limit=19,
    has_devices=True,
    record=RecordLayout(max_src=10, dim_bytes=4, has_use_count=True),
    no_reply=frozenset(
        {
            Command.FREE_BUFFER,
            Command.BUFFER_CLEAR,
            Command.SET_TENSOR,
            Command.GRAPH_COMPUTE,
            Command.INIT_TENSOR,
            Command.GRAPH_RECOMPUTE,
            Command.MEMSET_TENSOR,
        }
    ),
    empty_reply=frozenset(),
    graph_status_reply=False,
    set_tensor_cache_flag=True,
    graph_uid=False,
    recompute_view_offsets=False,
    alloc_size_has_srcs=True,
    hash_cache_rule=HashCacheRule.FLAG,
    compute_flag=True,
    graph_cache=GraphCache.LAST,
    ops=op_table(_OPS.split()),
    unary=tuple(int(k) for k in _UNARY),
    glu=tuple(int(k) for k in GluKind),
    types=tuple(i if i in TYPE_BY_ID else DEAD for i in range(_TYPE_COUNT)),
    enums=MappingProxyType(
        {
            "prec": _same(Prec),
            "pool": _same(PoolKind),
            "sort_order": _same(SortOrder),
            "scale_mode": _same(ScaleMode),
            "tri": _same(TriKind),
            "op_hint": _same(OpHint),
        }
    ),
    kv_bound=True,
    set_rows_by_view=False,
    ik_meaning=False,
)

TABLES = (LLAMA_7_0,)
