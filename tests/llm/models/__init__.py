"""Small models with random weights, one or more of each architecture, as GGUF files that stock llama.cpp runs.

`MODELS` describes them, `write` makes the file of one in a type of weights, `cached` keeps it in the cache folder.
`python -m tests.llm.models FOLDER [NAME-KIND ...]` writes files for other uses.
"""

from __future__ import annotations

from .shapes import MODELS, RandomModel
from .writer import KINDS, cached, write

__all__ = ["KINDS", "MODELS", "RandomModel", "cached", "write"]
