"""Typed access to a model file's values, with errors that name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

import numpy as np

from ggml_rpc.errors import ModelError

from .gguf_header import Value, shown

T = TypeVar("T")


class _Required:
    """The default of getters that have none."""


REQUIRED: Final = _Required()


class GgufValues:
    """A model file's values by key.

    Parameters
    ----------
    path : Path
        The file, for errors.
    metadata : Mapping of str to value
        What it states: bool, int, float, str, list of str, or a NumPy array of numbers.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Value]) -> None:
        self.path = path
        self.metadata = metadata

    @property
    def architecture(self) -> str:
        """Return the name of the architecture, `general.architecture`.

        Raises
        ------
        ModelError
            If the file does not state it.
        """
        return self.get_str("general.architecture")

    def get_int(
        self,
        key: str,
        default: T | _Required = REQUIRED,
        *,
        minimum: int = 0,
        maximum: int = 2**31 - 1,
    ) -> int | T:
        """Return a whole number.

        Parameters
        ----------
        key : str
            The key; ``{arch}`` in it stands for the architecture.
        default : object
            What to return if the file lacks the key; without it that is an error.
        minimum, maximum : int
            What the file may state.

        Raises
        ------
        ModelError
            If the key is missing, its value is no whole number or lies outside the bounds.
        """
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "a whole number")
        if not minimum <= value <= maximum:
            raise ModelError(f"{self.path}: {key!r} is {value}, but only {minimum} to {maximum} is possible")
        return value

    def get_ints(
        self, key: str, n: int, default: T | _Required = REQUIRED, *, minimum: int = 0, maximum: int = 2**31 - 1
    ) -> tuple[int, ...] | T:
        """Return n whole numbers, such as one a layer; a file that states a single one means it for all.

        Raises
        ------
        ModelError
            As `get_int`, and if the file has an array of another length.
        """
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        if not isinstance(value, np.ndarray):
            return (self.get_int(key, minimum=minimum, maximum=maximum),) * n
        if value.dtype.kind not in "iub" or len(value) != n:
            raise self._wrong(key, value, f"an array of {n} whole numbers")
        numbers = tuple(int(x) for x in value)
        for x in numbers:
            if not minimum <= x <= maximum:
                raise ModelError(f"{self.path}: {key!r} holds {x}, but only {minimum} to {maximum} is possible")
        return numbers

    def get_float(self, key: str, default: T | _Required = REQUIRED) -> float | T:
        """Return a finite number; otherwise as `get_int`."""
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def get_bool(self, key: str, default: T | _Required = REQUIRED) -> bool | T:
        """Return a truth value; otherwise as `get_int`."""
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def get_str(self, key: str, default: T | _Required = REQUIRED) -> str | T:
        """Return a text; otherwise as `get_int`."""
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def get_strings(self, key: str, default: T | _Required = REQUIRED) -> list[str] | T:
        """Return an array of texts; otherwise as `get_int`. The list is shared: do not change it."""
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        if not isinstance(value, list):
            raise self._wrong(key, value, "an array of texts")
        return value

    def get_array(
        self, key: str, default: T | _Required = REQUIRED, *, kind: Literal["int", "float", "any"] = "any"
    ) -> np.ndarray | T:
        """Return an array of numbers, read-only; otherwise as `get_int`.

        Parameters
        ----------
        kind : {"int", "float", "any"}
            What the numbers must be; truth values are whole numbers.
        """
        key = self._key(key)
        value = self._find(key, default)
        if value is None:
            return _given(default)
        kinds, what = {
            "int": ("iub", "an array of whole numbers"),
            "float": ("f", "an array of floating-point numbers"),
            "any": ("iubf", "an array of numbers"),
        }[kind]
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            raise self._wrong(key, value, what)
        return value

    def _key(self, key: str) -> str:
        return key.replace("{arch}", self.architecture) if "{arch}" in key else key

    def _find(self, key: str, default: object) -> Value | None:
        value = self.metadata.get(key)
        if value is None and isinstance(default, _Required):
            raise ModelError(
                f"{self.path} has no {shown(key)}, without which the model cannot be run; convert it again"
            )
        return value

    def _wrong(self, key: str, value: Value, what: str) -> ModelError:
        if isinstance(value, np.ndarray):
            found = f"an array of {len(value)} {value.dtype}"
        elif isinstance(value, list):
            found = f"an array of {len(value)} texts"
        else:
            found = shown(value)
        return ModelError(f"{self.path}: {shown(key)} must be {what}, but is {found}")


def _given(default: T | _Required) -> T:
    assert not isinstance(default, _Required)
    return default
