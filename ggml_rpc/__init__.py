"""A fast, safe ggml RPC worker for llama.cpp and ik_llama.cpp clients, and a client for Python programs."""

from ._version import __version__

__all__ = ["__version__"]
