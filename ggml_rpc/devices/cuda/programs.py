"""Compiled kernels on disk.

A folder a set of sources, options, architecture and compiler; in it files that hold one compiled program each, with the
names of its kernels. A file is written under a temporary name and renamed; one that is damaged is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"ggml-rpc kernels 1\n"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
CACHE_VARIABLE = "GGML_RPC_KERNEL_CACHE"


@dataclass(frozen=True)
class Program:
    """One compiled program.

    Parameters
    ----------
    kernels : dict
        Expression -> symbol in the code.
    code : bytes
        What the driver loads.
    """

    kernels: dict[str, str]
    code: bytes


# Compiles expressions of one file (without its suffix) together.
Compile = Callable[[str, Sequence[str]], Program]


def source_folder() -> Path:
    """Return the folder that includes of kernels start from: the repository's, or what was installed."""
    here = Path(__file__).resolve()
    for folder in (here.parents[3] / "csrc", here.parent / "csrc"):
        if (folder / "cuda" / "kernels" / "base.cuh").exists():
            return folder
    raise FileNotFoundError("the sources of the CUDA kernels are not installed")


def cache_folder() -> Path | None:
    """Return where compiled kernels are kept; None if the environment names no place."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE]) if os.environ[CACHE_VARIABLE] else None
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "ggml-rpc" / "cuda"
    home = os.environ.get("HOME")
    return Path(home) / ".cache" / "ggml-rpc" / "cuda" if home else None


def sources_of(file: str, folder: Path) -> dict[str, bytes]:
    """Return a kernel file and all that it includes: name from `folder` on -> text."""
    found: dict[str, bytes] = {}
    waiting = [f"cuda/kernels/{file}.cu"]
    while waiting:
        name = waiting.pop()
        path = folder / name
        if name in found or not path.exists():  # emulator.h is for the host only
            continue
        found[name] = path.read_bytes()
        waiting += INCLUDE.findall(found[name].decode())
    if not found:
        raise FileNotFoundError(f"{folder / 'cuda' / 'kernels' / file}.cu")
    return found


class ProgramCache:
    """Compile kernels once a machine.

    Parameters
    ----------
    compile_together : callable
        The compiler.
    identity : str
        All that its result depends on beside the sources: options, architecture, compiler version.
    folder : Path or None
        Where programs are kept; None: nowhere.
    sources : Path
        See `source_folder`.
    """

    def __init__(self, compile_together: Compile, identity: str, folder: Path | None, sources: Path) -> None:
        self._compile = compile_together
        self._identity = identity
        self._folder = folder
        self._sources = sources

    def programs(self, file: str, expressions: Sequence[str]) -> list[Program]:
        """Return programs that together hold these kernels of one file; what is not on disk is compiled in one go."""
        wanted = set(expressions)
        out = []
        place = self._place(file)
        for program in self._stored(place):
            if wanted & program.kernels.keys():
                out.append(program)
                wanted -= program.kernels.keys()
            if not wanted:
                return out
        missing = [expression for expression in dict.fromkeys(expressions) if expression in wanted]
        if missing:
            out.append(self._compile(file, missing))
            self._store(place, out[-1])
        return out

    def missing(self, file: str, expressions: Sequence[str]) -> list[str]:
        """Return those that are not on disk."""
        there = {name for program in self._stored(self._place(file)) for name in program.kernels}
        return [expression for expression in expressions if expression not in there]

    def _place(self, file: str) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(self._identity.encode())
        for name, text in sorted(sources_of(file, self._sources).items()):
            digest.update(f"\n{name} {len(text)}\n".encode())
            digest.update(text)
        return self._folder / f"{file}-{digest.hexdigest()[:32]}"

    def _stored(self, place: Path | None) -> list[Program]:
        if place is None:
            return []
        try:
            paths = sorted(place.glob("*.program"))
        except OSError:
            return []
        out = []
        for path in paths:
            with contextlib.suppress(OSError):
                program = _unpack(path.read_bytes())
                if program is None:
                    path.unlink()
                else:
                    out.append(program)
        return out

    def _store(self, place: Path | None, program: Program) -> None:
        if place is None:
            return
        name = hashlib.sha256("\n".join(sorted(program.kernels)).encode()).hexdigest()[:32]
        # Whoever cannot write compiles again next time.
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=place, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(_pack(program))
                Path(temporary).replace(place / f"{name}.program")
            except BaseException:
                Path(temporary).unlink()
                raise


def _pack(program: Program) -> bytes:
    body = json.dumps(program.kernels).encode() + b"\n" + program.code
    return MAGIC + hashlib.sha256(body).digest() + body


def _unpack(data: bytes) -> Program | None:
    """Return the program of a file's contents, None if they are damaged."""
    start = len(MAGIC) + hashlib.sha256().digest_size
    body = data[start:]
    if not data.startswith(MAGIC) or data[len(MAGIC) : start] != hashlib.sha256(body).digest():
        return None
    head, _, code = body.partition(b"\n")
    return Program(json.loads(head), code)
