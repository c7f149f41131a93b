"""Parse the header of one GGUF file: keys and values, and where each tensor lies.

The `gguf` package's reader makes several objects a token (seconds for a vocabulary of 262,144) and trusts what a
file says. Here a file is hostile until checked: nothing is allocated by a count that the file states.
"""

from __future__ import annotations

import itertools
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ggml_rpc.errors import ModelError
from ggml_rpc.spec.types import TYPE_BY_ID, TypeSpec

Value = bool | int | float | str | list[str] | np.ndarray
"""What a key can hold; arrays of numbers are read-only NumPy arrays, little-endian."""

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # the same layout; 1 had 32-bit lengths
MAX_DIMS = 4
MAX_NAME = 63  # bytes of a tensor's name: its field of 64 in stock programs and on the wire holds a final zero
MAX_KEY = 65535
MAX_HEADER = 1 << 28
"""Bytes a header may have: ten times what the largest known vocabulary takes, and a bound on what reading allocates."""
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_TEXTS = 1 << 22  # in all arrays together
"""Each is many times as large in memory as in a file. The largest known models have some thousands of tensors, and less
than a million tokens and merges."""
DEFAULT_ALIGNMENT = 32

_MOST_SHOWN = 60
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# Number of a value's type -> how one, or an array of them, lies in the file.
_NUMBERS = {
    number: np.dtype(code)
    for number, code in {
        0: "u1",
        1: "i1",
        2: "<u2",
        3: "<i2",
        4: "<u4",
        5: "<i4",
        6: "<f4",
        7: "?",
        10: "<u8",
        11: "<i8",
        12: "<f8",
    }.items()
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Describe one tensor of a file.

    Parameters
    ----------
    name : str
        Its name.
    type : TypeSpec
        Its type.
    ne : tuple of int
        Elements of each dimension in ggml's order (dimension 0 is the fastest), always 4.
    n_dims : int
        Dimensions that the file states, 0 to 4.
    offset : int
        Where its data begins, in bytes from the start of the file.
    nbytes : int
        Bytes of its data.
    """

    name: str
    type: TypeSpec
    ne: tuple[int, int, int, int]
    n_dims: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Hold what stands before a file's data: values by key, and tensors in the order of the file."""

    version: int
    metadata: dict[str, Value]
    tensors: list[TensorInfo]


def parse_header(data: mmap.mmap | bytes, path: str) -> Header:
    """Return the checked header of a GGUF file.

    Parameters
    ----------
    data : mmap or bytes
        The whole file.
    path : str
        Its name, for errors.

    Raises
    ------
    ModelError
        If the bytes are no GGUF file of version 2 or 3 in little-endian order, end early, name a key or tensor twice,
        or place a tensor where the file has no room for it or has another one.
    """
    return _Parser(data, path).header()


def shown(value: object) -> str:
    """Return what a file holds for the line of an error: without control characters, and cut."""
    text = repr(value[: _MOST_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


class _Parser:
    """Reads forwards through a header; every read is checked against the end."""

    def __init__(self, data: mmap.mmap | bytes, path: str) -> None:
        self._data = data
        self._path = path
        self._size = len(data)
        self._end = min(self._size, MAX_HEADER)
        self._at = 0
        self._n_texts = 0

    def header(self) -> Header:
        """Read it all."""
        magic = bytes(self._data[:4])
        if magic != MAGIC:
            raise self._error(f"is no GGUF file: it begins with {magic!r}")
        self._at = 4
        version = self._u32()
        if version & 0xFFFF == 0:
            raise self._error("is a big-endian GGUF file; convert it with gguf-convert-endian")
        if version not in VERSIONS:
            raise self._error(f"is a GGUF file of version {version}; versions 2 and 3 are known: convert it again")
        n_tensors, n_keys = self._u64(), self._u64()
        for n, most, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_keys, MAX_KEYS, "keys")):
            if n > most:
                raise self._damaged(f"{n:,} {what}; at most {most:,} are possible")
        metadata: dict[str, Value] = {}
        for _ in range(n_keys):
            key = self._text(MAX_KEY, "a key")
            if not key or key in metadata:
                raise self._damaged(f"the key {shown(key)} twice" if key else "an empty key")
            metadata[key] = self._value(key)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"the alignment {shown(alignment)}, which is no power of two")
        raw = self._tensors(n_tensors)
        begin = -(-self._at // alignment) * alignment
        return Header(version, metadata, self._placed(raw, begin, alignment))

    def _tensors(self, n: int) -> list[TensorInfo]:
        """Read the list of tensors; offsets are still relative to where the data begins."""
        seen: set[str] = set()
        infos = []
        for _ in range(n):
            name = self._text(MAX_NAME, "a tensor's name")
            if name in seen:
                raise self._damaged(f"the tensor {name!r} twice")
            seen.add(name)
            n_dims = self._u32()
            if n_dims > MAX_DIMS:
                raise self._damaged(f"{n_dims} dimensions for tensor {name!r}; at most {MAX_DIMS} are possible")
            dims = [self._u64() for _ in range(n_dims)]
            number = self._u32()
            spec = TYPE_BY_ID.get(number)
            if spec is None:
                raise self._error(f"has tensor {name!r} of type {number}, which is not known; use another quantisation")
            dims += [1] * (MAX_DIMS - n_dims)
            ne = (dims[0], dims[1], dims[2], dims[3])
            infos.append(TensorInfo(name, spec, ne, n_dims, self._u64(), self._nbytes(name, spec, ne)))
        return infos

    def _nbytes(self, name: str, spec: TypeSpec, ne: tuple[int, int, int, int]) -> int:
        """Return the bytes of a tensor, or refuse its shape."""
        shape = " x ".join(map(str, ne))
        if 0 in ne:
            raise self._damaged(f"no elements in tensor {name!r} ({shape})")
        if ne[0] % spec.block or ne[1] % spec.row_group:
            rows = f" in groups of {spec.row_group} rows" if spec.row_group > 1 else ""
            blocks = f"{spec.name} has blocks of {spec.block} elements{rows}"
            raise self._damaged(f"tensor {name!r} of {shape}, but {blocks}")
        nbytes = spec.row_bytes(ne[0]) * ne[1] * ne[2] * ne[3]
        if nbytes > self._size:
            raise self._error(self._missing(f"tensor {name!r} ({shape}, {spec.name}) alone needs {nbytes:,} bytes"))
        return nbytes

    def _placed(self, raw: list[TensorInfo], begin: int, alignment: int) -> list[TensorInfo]:
        """Return the tensors with offsets into the file; each lies inside it and apart from the others."""
        infos = []
        for t in raw:
            if t.offset % alignment:
                raise self._damaged(f"tensor {t.name!r} at offset {t.offset}, which is no multiple of {alignment}")
            end = begin + t.offset + t.nbytes
            if end > self._size:
                raise self._error(self._missing(f"tensor {t.name!r} ends at byte {end:,}"))
            infos.append(TensorInfo(t.name, t.type, t.ne, t.n_dims, begin + t.offset, t.nbytes))
        in_order = sorted(infos, key=lambda t: t.offset)
        for first, second in itertools.pairwise(in_order):
            if first.offset + first.nbytes > second.offset:
                raise self._damaged(f"tensors {first.name!r} and {second.name!r} in the same place")
        return infos

    def _value(self, key: str) -> Value:
        """Read a key's type and value."""
        kind = self._u32()
        if kind == _STRING:
            return self._text(MAX_HEADER, f"the value of {shown(key)}")
        if kind == _ARRAY:
            kind, count = self._u32(), self._u64()
            if kind == _STRING:
                return self._texts(count, key)
            return self._array(kind, count, key)
        value: bool | int | float = self._array(kind, 1, key)[0].item()
        return value

    def _array(self, kind: int, count: int, key: str) -> np.ndarray:
        """Read numbers."""
        dtype = _NUMBERS.get(kind)
        if dtype is None:
            raise self._damaged(f"a value of type {kind} for {shown(key)}")
        begin = self._skip(count * dtype.itemsize, f"{count:,} numbers of {shown(key)}")
        # Booleans are any byte, NumPy's only 0 and 1. A copy, so that nothing keeps the file mapped.
        raw = np.frombuffer(self._data, "u1" if dtype == np.bool_ else dtype, count, begin)
        array: np.ndarray = raw != 0 if dtype == np.bool_ else raw.copy()
        array.flags.writeable = False
        return array

    def _texts(self, count: int, key: str) -> list[str]:
        """Read strings: the hot loop of opening a file, once a token of the vocabulary."""
        self._n_texts += count
        if self._n_texts > MAX_TEXTS:
            raise self._damaged(f"{self._n_texts:,} texts up to {shown(key)}; at most {MAX_TEXTS:,} are possible")
        data, at, end, length_at = self._data, self._at, self._end, _U64.unpack_from
        out: list[str] = []
        append: Callable[[str], None] = out.append
        try:
            for _ in range(count):
                (length,) = length_at(data, at)
                begin = at + 8
                at = begin + length
                if at > end:
                    raise self._cut_off(f"the strings of {shown(key)}")
                append(data[begin:at].decode())
        except struct.error:
            raise self._cut_off(f"the strings of {shown(key)}") from None
        except UnicodeDecodeError:
            raise self._damaged(f"a string that is not UTF-8, number {len(out)} of {shown(key)}") from None
        self._at = at
        return out

    def _text(self, limit: int, what: str) -> str:
        length = self._u64()
        if length > limit:
            raise self._damaged(f"{length:,} bytes for {what}; at most {limit:,} are possible")
        begin = self._skip(length, what)
        try:
            return bytes(self._data[begin : begin + length]).decode()
        except UnicodeDecodeError:
            raise self._damaged(f"{what} that is not UTF-8, at byte {begin:,}") from None

    def _u32(self) -> int:
        value: int = _U32.unpack_from(self._data, self._skip(4, "a number"))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack_from(self._data, self._skip(8, "a number"))[0]
        return value

    def _skip(self, n: int, what: str) -> int:
        """Step over n bytes and return where they begin."""
        begin = self._at
        if n > self._end - begin:
            raise self._cut_off(what)
        self._at = begin + n
        return begin

    def _cut_off(self, what: str) -> ModelError:
        if self._end < self._size:
            return self._damaged(f"more than {MAX_HEADER:,} bytes")
        return self._error(self._missing(f"{what}, from byte {self._at:,} on, would end beyond that"))

    def _missing(self, what: str) -> str:
        return f"is incomplete or damaged: it has {self._size:,} bytes, but {what}; fetch it again"

    def _damaged(self, what: str) -> ModelError:
        return self._error(f"is damaged: its header has {what}")

    def _error(self, text: str) -> ModelError:
        return ModelError(f"{self._path} {text}")
