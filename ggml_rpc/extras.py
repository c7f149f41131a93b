"""Packages that only some uses need: imported when they are needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import RpcError


def require(name: str, what: str) -> ModuleType:
    """Import a module of a package that the extra `llm` brings.

    Parameters
    ----------
    name : str
        The module.
    what : str
        What needs it, as the beginning of the error.

    Raises
    ------
    RpcError
        If the package is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise RpcError(f"{what} needs the package {package}: pip install 'ggml-rpc[llm]'") from error
