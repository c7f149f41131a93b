"""The registry of wire dialects. A new dialect is one file and one entry in `DIALECTS`."""

from __future__ import annotations

from .base import DEAD, Dialect, Field, GraphCache, HashCacheRule, RecordLayout, derive
from .llama_7_0 import LLAMA_7_0
from .llama_8_0 import LLAMA_8_0

DIALECTS: tuple[Dialect, ...] = (LLAMA_7_0, LLAMA_8_0)

DEFAULT: Dialect = LLAMA_8_0

NAMES: tuple[str, ...] = tuple(d.name for d in DIALECTS)

_BY_NAME = {name: d for d in DIALECTS for name in (d.name, *d.aliases)}


def find(name: str) -> Dialect:
    """Return the dialect called `name`, by its name or one of its aliases.

    Raises
    ------
    KeyError
        If there is none; the message lists the names.
    """
    if name not in _BY_NAME:
        raise KeyError(f"unknown protocol {name!r}; known are {', '.join(NAMES)}")
    return _BY_NAME[name]


__all__ = [
    "DEAD",
    "DEFAULT",
    "DIALECTS",
    "NAMES",
    "Dialect",
    "Field",
    "GraphCache",
    "HashCacheRule",
    "RecordLayout",
    "derive",
    "find",
]
