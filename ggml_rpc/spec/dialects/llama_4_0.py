"""Protocols 4.0.0 to 4.0.3 of llama.cpp (from April 2026): no MEMSET_TENSOR; ops came with each patch number."""

from __future__ import annotations

from ..commands import Command
from .base import commands_without, derive, without_ops, without_types
from .llama_5 import LLAMA_5_0

LLAMA_4_0_3 = derive(
    LLAMA_5_0,
    name="4.0.3",
    announce=(4, 0, 3),
    aliases=("llama.cpp-4.0.3",),
    commands=commands_without(LLAMA_5_0.commands, Command.MEMSET_TENSOR),
    command_limit=17,
    empty_reply=LLAMA_5_0.empty_reply - {Command.MEMSET_TENSOR},
)

LLAMA_4_0_2 = derive(
    LLAMA_4_0_3,
    name="4.0.2",
    announce=(4, 0, 2),
    aliases=("llama.cpp-4.0.2",),
    ops=without_ops(LLAMA_4_0_3.ops, "DSV4_HC_COMB", "DSV4_HC_PRE", "DSV4_HC_POST"),
)

LLAMA_4_0_1 = derive(
    LLAMA_4_0_2,
    name="4.0.1",
    announce=(4, 0, 1),
    aliases=("llama.cpp-4.0.1",),
    ops=without_ops(LLAMA_4_0_2.ops, "LIGHTNING_INDEXER"),
)

LLAMA_4_0_0 = derive(
    LLAMA_4_0_1,
    name="4.0.0",
    announce=(4, 0, 0),
    aliases=("4.0", "4", "llama.cpp-4.0.0", "llama.cpp-4.0"),
    ops=without_ops(LLAMA_4_0_1.ops, "COL2IM_1D"),
    types=without_types(LLAMA_4_0_1.types, "Q2_0"),
)

TABLES = (LLAMA_4_0_0, LLAMA_4_0_1, LLAMA_4_0_2, LLAMA_4_0_3)
