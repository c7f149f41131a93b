"""The architectures that can be run, by the names that files give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggml_rpc.errors import ModelError

from ..gguf_header import shown
from .base import INPUT, OUTPUT, Architecture, WeightSpec
from .gemma2 import Gemma2
from .gemma3 import Gemma3
from .llama import Llama
from .phi3 import Phi3
from .qwen2 import Qwen2
from .qwen3 import Qwen3
from .qwen3moe import Qwen3Moe

if TYPE_CHECKING:
    from ..gguf_file import GgufFile

__all__ = ["ARCHITECTURES", "INPUT", "OUTPUT", "Architecture", "WeightSpec", "architecture_of"]

ARCHITECTURES: dict[str, Architecture] = {
    kind.name: kind() for kind in (Llama, Qwen2, Qwen3, Qwen3Moe, Gemma2, Gemma3, Phi3)
}
"""Architectures by name."""


def architecture_of(file: GgufFile) -> Architecture:
    """Return a file's architecture.

    Raises
    ------
    ModelError
        If it is not known.
    """
    found = ARCHITECTURES.get(file.architecture)
    if found is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(
            f"{file.path} is of the architecture {shown(file.architecture)}, which cannot be run; these can: {known}"
        )
    return found
