"""The server: accepts stock clients and serves them the devices of this machine."""

from .cache import TensorCache, cache_directory
from .protocols import Protocol, parse_protocols
from .server import Server

__all__ = ["Protocol", "Server", "TensorCache", "cache_directory", "parse_protocols"]
