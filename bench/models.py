"""Provide the models of the measurements from the cache folder, writing random ones at their first use."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.peers import cache_dir, prepare_model

from .make_gguf import SHAPES, write_random

TINYLLAMA_TYPES = ("Q4_0", "Q4_K_M", "Q8_0", "F16")
NAMES = ("gemma", *(f"tinyllama-{kind}" for kind in TINYLLAMA_TYPES), "tiny-Q4_0")


def model(name: str) -> Path:
    """Return the path of a model by its short name, one of `NAMES`, or of a GGUF file."""
    if name == "gemma":
        return prepare_model()
    if name not in NAMES:
        return Path(name)
    shape, kind = name.split("-", 1)
    path = cache_dir() / "models" / f"random-{name}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            write_random(Path(folder) / path.name, SHAPES[shape], kind)
            os.replace(Path(folder) / path.name, path)
    return path


def decode_bytes(path: Path) -> int:
    """Return the bytes of weights that a token reads: all, without the token embeddings where these are not the output.

    Keys and values are not counted (2 % of TinyLlama's Q4_0 at 576 tokens): the speed that follows is a little high.
    """
    with GgufFile.open(path) as file:
        tied = "output.weight" not in file.tensors
        return sum(tensor.nbytes for name, tensor in file.tensors.items() if tied or name != "token_embd.weight")
