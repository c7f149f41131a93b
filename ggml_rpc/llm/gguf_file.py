"""Read a model from GGUF files: values by key, tensors as views of the mapped file.

A model is opened, its settings are read and its tensors taken by name::

    with GgufFile.open("model.gguf") as model:
        n_layer = model.get_int("{arch}.block_count", minimum=1, maximum=1024)
        n_embd = model.get_int("{arch}.embedding_length", minimum=1)
        norm = model.require("output_norm.weight", (n_embd,))
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from ggml_rpc.errors import ModelError
from ggml_rpc.spec.types import TypeSpec

from .gguf_header import Header, TensorInfo, parse_header
from .gguf_values import GgufValues

_SPLIT_NAME = re.compile(r"(?P<prefix>.*)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_MAX_SPLITS = 99999


class _Part:
    """One mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = _map(path)
        try:
            self.header: Header = parse_header(self._map, str(path))
        except BaseException:
            self.close()
            raise

    def bytes_at(self, offset: int, n: int) -> np.ndarray:
        """Return n bytes of the file."""
        if self._map is None:
            raise ModelError(f"{self.path} was closed before its tensors were read")
        return np.frombuffer(self._map, np.uint8, n, offset)

    def close(self) -> None:
        """Release the map; the system keeps it for as long as an array still views it."""
        mapped, self._map = self._map, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:
                return


def _map(path: Path) -> mmap.mmap:
    try:
        # A pipe or a device would block on opening or has no size.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelError(f"{path} is no regular file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty; fetch it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name with a zero byte; a file that became empty meanwhile
        raise ModelError(f"{str(path)!r} cannot be read: {error}") from error


class GgufTensor:
    """A tensor in a file.

    Attributes
    ----------
    name : str
        Its name.
    type : str
        Name of its type, upper case, as in `ggml_rpc.spec.types`.
    spec : TypeSpec
        Its type.
    ne : tuple of int
        Elements of each dimension in ggml's order (dimension 0 is the fastest), always 4.
    n_dims : int
        Dimensions that the file states, 0 to 4.
    shape : tuple of int
        NumPy's order (the last dimension is the fastest), `n_dims` long.
    nbytes : int
        Bytes of its data.
    path : Path
        The file it lies in.
    file_offset : int
        Where in that file its data begins, in bytes.
    """

    __slots__ = ("_part", "file_offset", "n_dims", "name", "nbytes", "ne", "path", "spec", "type")

    def __init__(self, info: TensorInfo, part: _Part) -> None:
        self._part = part
        self.name = info.name
        self.spec: TypeSpec = info.type
        self.type = info.type.name
        self.ne = info.ne
        self.n_dims = info.n_dims
        self.nbytes = info.nbytes
        self.path = part.path
        self.file_offset = info.offset

    @property
    def shape(self) -> tuple[int, ...]:
        """Return NumPy's shape."""
        return self.ne[: self.n_dims][::-1]

    @property
    def data(self) -> np.ndarray:
        """Return the bytes as a read-only view of the mapped file, shape (nbytes,), uint8; nothing is copied.

        Its pages are read when they are touched: a file must not be cut short while it is open.

        Raises
        ------
        ModelError
            If the file was closed.
        """
        return self._part.bytes_at(self.file_offset, self.nbytes)

    def __repr__(self) -> str:
        return f"<GgufTensor {self.name!r} {self.type} {self.shape}>"


class GgufFile(GgufValues):
    """A model's files, opened by `GgufFile.open`; a context manager that closes them.

    Attributes
    ----------
    path : Path
        The file that was opened: the first part of a split model.
    paths : tuple of Path
        All its files.
    metadata : Mapping of str to value
        bool, int, float, str, list of str, or a read-only NumPy array of numbers. Of a split model, the first part's.
    tensors : Mapping of str to GgufTensor
        All tensors in the order of the files.
    """

    def __init__(self, parts: list[_Part], tensors: dict[str, GgufTensor]) -> None:
        super().__init__(parts[0].path, MappingProxyType(parts[0].header.metadata))
        self._parts = parts
        self.paths = tuple(part.path for part in parts)
        self.tensors: Mapping[str, GgufTensor] = MappingProxyType(tensors)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GgufFile:
        """Open a model; given the first of a split model's files, all of them.

        Parameters
        ----------
        path : str or PathLike
            The file. Those of a split model stand beside each other and are named ``X-00001-of-00003.gguf`` and so on.

        Raises
        ------
        ModelError
            If a file cannot be read, is no sound GGUF file, or if parts are missing or do not belong together.
        """
        parts = [_Part(Path(path))]
        try:
            for other in _other_paths(parts[0]):
                parts.append(_Part(other))
            return cls(parts, _joined(parts))
        except BaseException:
            for part in parts:
                part.close()
            raise

    def close(self) -> None:
        """Release the maps. Arrays that were taken from `GgufTensor.data` before stay valid."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require(self, name: str, shape: tuple[int, ...]) -> GgufTensor:
        """Return a tensor of the given shape.

        Parameters
        ----------
        name : str
            Its name.
        shape : tuple of int
            In NumPy's order (the last dimension is the fastest); leading ones may be missing in the file or here.

        Raises
        ------
        ModelError
            If the file has no such tensor or it has another shape.
        """
        tensor = self.optional(name, shape)
        if tensor is None:
            raise ModelError(
                f"{self.path} has no tensor {name!r} (shape {shape}), which {self.architecture!r} models need"
            )
        return tensor

    def optional(self, name: str, shape: tuple[int, ...]) -> GgufTensor | None:
        """Return a tensor of the given shape, or None if the file has none of that name; see `require`."""
        tensor = self.tensors.get(name)
        if tensor is not None and shape[::-1] + (1,) * (4 - len(shape)) != tensor.ne:
            raise ModelError(
                f"{tensor.path}: tensor {name!r} has shape {tensor.shape}, but the file's own settings ask for {shape}"
            )
        return tensor


def _split_value(part: _Part, key: str, default: int | None = None) -> int:
    value = part.header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"{part.path} is part of a split model, but its {key!r} is missing or no number")
    return value


def _other_paths(first: _Part) -> list[Path]:
    """Return the files that belong to the one that was opened."""
    count = _split_value(first, "split.count", 0)
    if count <= 1:
        return []
    name = _SPLIT_NAME.fullmatch(first.path.name)
    if count > _MAX_SPLITS or name is None or int(name["count"]) != count:
        raise ModelError(
            f"{first.path} is one of {count} parts of a split model, but is not named X-00001-of-{count:05}.gguf:"
            " give the files their original names"
        )
    number = _split_value(first, "split.no")
    paths = [first.path.with_name(f"{name['prefix']}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if number != 0 or int(name["no"]) != 1:
        raise ModelError(f"{first.path} is not the first part of its model: open {paths[0]}")
    absent = [path for path in paths if not path.exists()]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ModelError(f"{absent[0]}{more} of {count} parts missing; fetch them into the folder of the first")
    return paths[1:]


def _joined(parts: list[_Part]) -> dict[str, GgufTensor]:
    """Return all tensors, having checked that the parts belong together."""
    tensors: dict[str, GgufTensor] = {}
    for i, part in enumerate(parts):
        if len(parts) > 1:
            number, count = _split_value(part, "split.no"), _split_value(part, "split.count")
            if number != i or count != len(parts):
                raise ModelError(
                    f"{part.path} says that it is part {number + 1} of {count}, not part {i + 1} of {len(parts)}:"
                    " the files do not belong together"
                )
        for info in part.header.tensors:
            if info.name in tensors:
                raise ModelError(f"{part.path} has tensor {info.name!r}, which {tensors[info.name].path} has too")
            tensors[info.name] = GgufTensor(info, part)
    total = _split_value(parts[0], "split.tensors.count", len(tensors))
    if len(parts) > 1 and total != len(tensors):
        raise ModelError(
            f"{parts[0].path} promises {total} tensors, but its {len(parts)} parts have {len(tensors)}:"
            " the files do not belong together"
        )
    return tensors
