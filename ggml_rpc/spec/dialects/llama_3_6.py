"""Protocols 3.6.1 and 3.6.0 of llama.cpp (December 2025 to April 2026): HELLO is empty.

Three tables went by the number 3.6.0; a date after the name is the first day of one. The COMPUTE flag came on
2026-01-19, GATED_DELTA_NET on 2026-03-07.
"""

from __future__ import annotations

from types import MappingProxyType

from .base import derive, without_ops, without_types
from .llama_4_0 import LLAMA_4_0_0

LLAMA_3_6_1 = derive(
    LLAMA_4_0_0,
    name="3.6.1",
    announce=(3, 6, 1),
    aliases=("3.6", "llama.cpp-3.6.1", "llama.cpp-3.6"),
    hello_request=0,
    hello_reply=3,
    enums=MappingProxyType({**LLAMA_4_0_0.enums, "op_hint": MappingProxyType({})}),
)

LLAMA_3_6_0 = derive(
    LLAMA_3_6_1,
    name="3.6.0",
    announce=(3, 6, 0),
    aliases=("3.6.0@2026-03-07", "llama.cpp-3.6.0", "llama.cpp-3.6.0@2026-03-07"),
    types=without_types(LLAMA_3_6_1.types, "NVFP4", "Q1_0"),
)

LLAMA_3_6_0_JANUARY = derive(
    LLAMA_3_6_0,
    name="3.6.0@2026-01-19",
    announce=(3, 6, 0),
    aliases=("llama.cpp-3.6.0@2026-01-19",),
    ops=without_ops(LLAMA_3_6_0.ops, "GATED_DELTA_NET"),
)

LLAMA_3_6_0_DECEMBER = derive(
    LLAMA_3_6_0_JANUARY,
    name="3.6.0@2025-12-05",
    announce=(3, 6, 0),
    aliases=("llama.cpp-3.6.0@2025-12-05",),
    compute_flag=False,
    set_rows_by_view=True,  # the first day of the third source is not known: both forms are taken up to here
)

TABLES = (LLAMA_3_6_0_DECEMBER, LLAMA_3_6_0_JANUARY, LLAMA_3_6_0, LLAMA_3_6_1)
