"""What kernels do not do, of ops that have kernels: these nodes run on the CPU, and why that is enough."""

from __future__ import annotations

import re

# A pattern of what the device says, as in `ADD (F32, I8 -> F32)`, and the reason.
ALLOWED: dict[str, str] = {}


def may_fall_back(text: str) -> bool:
    """Return whether a node that is described so may run on the CPU."""
    return any(re.fullmatch(pattern, text) for pattern in ALLOWED)
