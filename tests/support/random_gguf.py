"""What writers of random models share: metadata, and files that are kept in the cache folder."""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import gguf

from ggml_rpc.peers.cache import cache_dir

Value = bool | int | float | str | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...]


def add_value(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    """Add a piece of metadata in the type that readers expect of its kind."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cached_file(name: str, described: str, write: Callable[[Path], None]) -> Path:
    """Return a file of the cache folder, written at the first call.

    Parameters
    ----------
    name : str
        What its name begins with.
    described : str
        All that its contents follow from: a hash of it ends the name.
    write : callable
        Writes it to a path.
    """
    path = cache_dir() / "models" / "random" / f"{name}-{zlib.crc32(described.encode()):08x}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            write(Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    return path
