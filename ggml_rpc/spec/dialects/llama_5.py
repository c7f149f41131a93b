"""Protocols 5.1.0 and 5.0.0 of llama.cpp (from July 2026): four more commands have an empty reply.

5.0.0 has no use count.

SWIGLU_CLAMP came while 6.0.0 was announced; the wider precisions and the bound of FLASH_ATTN_EXT's cache with it.
"""

from __future__ import annotations

from types import MappingProxyType

from ..commands import Command
from ..enums import GluKind, Prec
from .base import RecordLayout, derive
from .llama_6_0 import LLAMA_6_0

_ANSWERED = frozenset({Command.FREE_BUFFER, Command.BUFFER_CLEAR, Command.INIT_TENSOR, Command.MEMSET_TENSOR})

LLAMA_5_1 = derive(
    LLAMA_6_0,
    name="5.1.0",
    announce=(5, 1, 0),
    aliases=("5.1", "llama.cpp-5.1.0", "llama.cpp-5.1"),
    command_limit=18,
    no_reply=LLAMA_6_0.no_reply - _ANSWERED,
    empty_reply=_ANSWERED,
    glu=tuple(k for k in LLAMA_6_0.glu if k != GluKind.SWIGLU_CLAMP),
    enums=MappingProxyType({**LLAMA_6_0.enums, "prec": MappingProxyType({0: int(Prec.DEFAULT), 10: int(Prec.F32)})}),
    kv_bound=False,
)

LLAMA_5_0 = derive(
    LLAMA_5_1,
    name="5.0.0",
    announce=(5, 0, 0),
    aliases=("5.0", "5", "llama.cpp-5.0.0", "llama.cpp-5.0"),
    record=RecordLayout(has_use_count=False),
)

TABLES = (LLAMA_5_0, LLAMA_5_1)
