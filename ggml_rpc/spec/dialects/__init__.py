"""The registry of wire dialects. A new dialect is one file in this folder: its `TABLES` are found by themselves."""

from __future__ import annotations

import importlib
import pkgutil

from .base import DEAD, Dialect, Field, GraphCache, HashCacheRule, RecordLayout, derive
from .llama_8_0 import LLAMA_8_0


def _tables() -> tuple[Dialect, ...]:
    modules = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name.startswith(("llama_", "ik_")))
    found = [d for name in modules for d in importlib.import_module(f"{__name__}.{name}").TABLES]
    # llama.cpp first; stable, so that tables of one number keep the order in which they came.
    return tuple(sorted(found, key=lambda d: (d.ik_meaning, d.announce)))


DIALECTS: tuple[Dialect, ...] = _tables()

DEFAULT: Dialect = LLAMA_8_0

NAMES: tuple[str, ...] = tuple(d.name for d in DIALECTS)

_BY_NAME = {name: d for d in DIALECTS for name in (d.name, *d.aliases)}

ALL_NAMES = frozenset(_BY_NAME)
"""Names and aliases."""


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
    "ALL_NAMES",
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
