"""A fast, safe ggml RPC worker for llama.cpp and ik_llama.cpp clients, and a client for Python programs.

Servers, a language model over them, and devices for graphs that are none::

    from ggml_rpc import LLM, Server, connect
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .client.local import local_devices
    from .client.remote import connect
    from .graph._tensor import Tensor
    from .graph.builder import Graph
    from .llm.generate import LLM
    from .llm.perplexity import perplexity
    from .llm.results import Token
    from .llm.sampling import SamplingParams
    from .server import Server

__all__ = [
    "LLM",
    "Graph",
    "SamplingParams",
    "Server",
    "Tensor",
    "Token",
    "__version__",
    "connect",
    "local_devices",
    "perplexity",
]

# These bring native modules and NumPy; `import ggml_rpc` alone stays light.
_HOMES = {
    "Graph": "graph.builder",
    "LLM": "llm.generate",
    "SamplingParams": "llm.sampling",
    "Server": "server",
    "Tensor": "graph._tensor",
    "Token": "llm.results",
    "connect": "client.remote",
    "local_devices": "client.local",
    "perplexity": "llm.perplexity",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
