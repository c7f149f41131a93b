"""A fast, safe ggml RPC worker for llama.cpp and ik_llama.cpp clients, and a client for Python programs."""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Server", "__version__"]


def __getattr__(name: str) -> Any:
    # The server brings native modules; `import ggml_rpc` alone stays light.
    if name == "Server":
        from .server import Server  # noqa: PLC0415

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
