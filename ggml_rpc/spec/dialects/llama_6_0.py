"""Protocol 6.0.0 of llama.cpp (late August 2026): SET_TENSOR without the flag byte."""

from __future__ import annotations

from .base import HashCacheRule, derive
from .llama_7_0 import LLAMA_7_0

LLAMA_6_0 = derive(
    LLAMA_7_0,
    name="6.0.0",
    announce=(6, 0, 0),
    aliases=("6.0", "6", "llama.cpp-6.0.0", "llama.cpp-6.0"),
    set_tensor_cache_flag=False,
    hash_cache_rule=HashCacheRule.SIZE,
)

TABLES = (LLAMA_6_0,)
