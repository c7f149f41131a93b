"""Find, fetch and run stock llama.cpp peers and a real model, for the demonstration, the tests and the benchmarks."""

from .cache import PeerError, cache_dir
from .model import find_model, prepare_model
from .stock import BUILDS, Peer, find_peer, prepare_peer

__all__ = [
    "BUILDS",
    "Peer",
    "PeerError",
    "cache_dir",
    "find_model",
    "find_peer",
    "prepare_model",
    "prepare_peer",
]
