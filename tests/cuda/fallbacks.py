"""What kernels do not do, of ops that have kernels: these nodes run on the CPU, and why that is enough."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ggml_rpc.spec.types import TYPES

# What kernels quantise to: blocks of 32, and rows of Q8_KV.
CACHES = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q6_0", "Q8_KV"}


def _one_of(names: Iterable[str]) -> str:
    return f"({'|'.join(names)})"


NO_CACHE = _one_of(t.name for t in TYPES if t.is_quantized and t.name not in CACHES)

_NOT_WRITTEN = "no cache is of these types, and clients quantise weights before they send them"

# A pattern of what the device says, as in `ADD (F32, I8 -> F32)`, and the reason.
ALLOWED: dict[str, str] = {
    rf"CPY \(F32, {NO_CACHE} -> \1\)": _NOT_WRITTEN,
}


def may_fall_back(text: str) -> bool:
    """Return whether a node that is described so may run on the CPU."""
    return any(re.fullmatch(pattern, text) for pattern in ALLOWED)
