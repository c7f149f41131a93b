"""The server: accepts stock clients and serves them the devices of this machine."""

from .cache import TensorCache, cache_directory
from .server import Protocol, Server, parse_protocols

__all__ = ["Protocol", "Server", "TensorCache", "cache_directory", "parse_protocols"]
