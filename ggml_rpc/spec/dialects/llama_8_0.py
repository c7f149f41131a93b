"""Protocol 8.0.0 of llama.cpp: 2-D transfers, graphs by uid, reduction between two servers."""

from __future__ import annotations

from ..commands import Command
from .base import GraphCache, commands_with, derive
from .llama_7_0 import LLAMA_7_0

LLAMA_8_0 = derive(
    LLAMA_7_0,
    name="8.0.0",
    announce=(8, 0, 0),
    aliases=("8.0", "8", "llama.cpp-8.0.0", "llama.cpp-8.0"),
    commands=commands_with(
        LLAMA_7_0.commands,
        Command.SET_TENSOR_2D,
        Command.GET_TENSOR_2D,
        Command.COMM_INIT,
        Command.COMM_ALLREDUCE,
        Command.COMM_FREE,
    ),
    command_limit=24,
    no_reply=LLAMA_7_0.no_reply | {Command.SET_TENSOR_2D, Command.COMM_ALLREDUCE, Command.COMM_FREE},
    graph_uid=True,
    graph_cache=GraphCache.BY_UID,
)

TABLES = (LLAMA_8_0,)
