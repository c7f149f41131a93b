"""Protocol 3.5.0 of llama.cpp (November 2025): GET_ALLOC_SIZE does not carry the sources."""

from __future__ import annotations

from .base import derive
from .llama_3_6 import LLAMA_3_6_0_DECEMBER

LLAMA_3_5 = derive(
    LLAMA_3_6_0_DECEMBER,
    name="3.5.0",
    announce=(3, 5, 0),
    aliases=("3.5", "llama.cpp-3.5.0", "llama.cpp-3.5"),
    alloc_size_has_srcs=False,
)

TABLES = (LLAMA_3_5,)
