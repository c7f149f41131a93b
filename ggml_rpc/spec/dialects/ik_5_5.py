"""Protocol 5.5.5 of ik_llama.cpp (autumn 2026): 64-bit shapes, the replies of llama.cpp 7.0.0, still an empty HELLO.

GRAPH_RECOMPUTE carries the places that the graph's CPY nodes write to, which move with every token.
"""

from __future__ import annotations

from ..commands import Command
from .base import HashCacheRule, RecordLayout, commands_with, derive
from .ik_3_5 import IK_3_5_2
from .llama_7_0 import LLAMA_7_0

IK_5_5 = derive(
    IK_3_5_2,
    name="ik-5.5.5",
    announce=(5, 5, 5),
    aliases=("ik-5.5", "ik-5", "ik_llama.cpp-5.5.5"),
    commands=commands_with(IK_3_5_2.commands, Command.MEMSET_TENSOR),
    command_limit=19,
    record=RecordLayout(max_src=16, dim_bytes=8, has_use_count=False),
    no_reply=LLAMA_7_0.no_reply,
    empty_reply=frozenset(),
    set_tensor_cache_flag=True,
    hash_cache_rule=HashCacheRule.FLAG,
    alloc_size_has_srcs=True,
    recompute_view_offsets=True,
)

TABLES = (IK_5_5,)
