"""Protocol 3.0.0 of llama.cpp (October and November 2025): GRAPH_COMPUTE is answered, GRAPH_RECOMPUTE is not there yet.

Four tables went by this number; a date after the name is the first day of one.
"""

from __future__ import annotations

from types import MappingProxyType

from ..commands import Command
from ..enums import ScaleMode, UnaryKind
from .base import GraphCache, commands_without, derive, without, without_ops
from .llama_3_5 import LLAMA_3_5

LLAMA_3_0 = derive(
    LLAMA_3_5,
    name="3.0.0",
    announce=(3, 0, 0),
    aliases=("3.0", "3", "3.0.0@2025-11-25", "llama.cpp-3.0", "llama.cpp-3.0.0", "llama.cpp-3.0.0@2025-11-25"),
    commands=commands_without(LLAMA_3_5.commands, Command.GRAPH_RECOMPUTE),
    command_limit=16,
    no_reply=LLAMA_3_5.no_reply - {Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE},
    graph_status_reply=True,
    graph_cache=GraphCache.NONE,
)

LLAMA_3_0_NOVEMBER = derive(
    LLAMA_3_0,
    name="3.0.0@2025-11-13",
    announce=(3, 0, 0),
    aliases=("llama.cpp-3.0.0@2025-11-13",),
    ops=without_ops(LLAMA_3_0.ops, "TOP_K"),
)

LLAMA_3_0_MID_OCTOBER = derive(
    LLAMA_3_0_NOVEMBER,
    name="3.0.0@2025-10-15",
    announce=(3, 0, 0),
    aliases=("llama.cpp-3.0.0@2025-10-15",),
    ops=without_ops(LLAMA_3_0_NOVEMBER.ops, "CUMSUM", "TRI", "FILL", "SOLVE_TRI"),
    unary=without(LLAMA_3_0_NOVEMBER.unary, UnaryKind.EXPM1, UnaryKind.SOFTPLUS),
)

LLAMA_3_0_OCTOBER = derive(
    LLAMA_3_0_MID_OCTOBER,
    name="3.0.0@2025-10-04",
    announce=(3, 0, 0),
    aliases=("llama.cpp-3.0.0@2025-10-04",),
    unary=without(LLAMA_3_0_MID_OCTOBER.unary, UnaryKind.FLOOR, UnaryKind.CEIL, UnaryKind.ROUND, UnaryKind.TRUNC),
    enums=MappingProxyType(
        {
            **LLAMA_3_0.enums,
            "scale_mode": MappingProxyType({int(m): int(m) for m in (ScaleMode.NEAREST, ScaleMode.BILINEAR)}),
        }
    ),
)

TABLES = (LLAMA_3_0_OCTOBER, LLAMA_3_0_MID_OCTOBER, LLAMA_3_0_NOVEMBER, LLAMA_3_0)
