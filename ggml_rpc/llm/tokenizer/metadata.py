"""Read typed values out of a model file's metadata, which may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ModelError

Metadata = Mapping[str, Any]


def text(metadata: Metadata, key: str, default: str | None = None) -> str:
    """Return a text; without a default the key must be there."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise ModelError(f"the model file lacks {key}" if value is None else f"{key} of the model file is not a text")
    return value


def flag(metadata: Metadata, key: str, default: bool) -> bool:
    """Return a yes or no."""
    value = metadata.get(key, default)
    if not isinstance(value, (bool, np.bool_)):
        raise ModelError(f"{key} of the model file is not a yes or no")
    return bool(value)


def integer(metadata: Metadata, key: str) -> int | None:
    """Return a number, None if the key is not there."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ModelError(f"{key} of the model file is not a whole number")
    return int(value)


def texts(metadata: Metadata, key: str) -> list[str]:
    """Return a list of texts that are valid UTF-8."""
    value = metadata.get(key)
    if value is None:
        raise ModelError(f"the model file lacks {key}")
    out: list[str] = list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]
    for i, item in enumerate(out):
        if not isinstance(item, str) or item is value:
            raise ModelError(f"{key} of the model file is not a list of texts")
        if not item.isascii() and any("\ud800" <= letter <= "\udfff" for letter in item):
            raise ModelError(f"entry {i} of {key} is not valid UTF-8")
    return out


def numbers(metadata: Metadata, key: str, count: int, dtype: type[np.generic]) -> NDArray[Any] | None:
    """Return the first `count` numbers of a list, None if the key is not there.

    Raises
    ------
    ModelError
        If it is no list of numbers, is shorter, or a number does not fit.
    """
    value = metadata.get(key)
    if value is None:
        return None
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        raise ModelError(f"{key} of the model file is not a list of numbers") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuf"):
        raise ModelError(f"{key} of the model file is not a list of numbers")
    if len(array) < count:
        raise ModelError(f"{key} of the model file has {len(array)} entries for {count} tokens")
    array = array[:count]
    if array.size and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)  # type: ignore[type-var]
        if array.dtype.kind == "f" or int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ModelError(f"{key} of the model file holds what is not a number of {limits.bits} bits")
    return array.astype(dtype)
