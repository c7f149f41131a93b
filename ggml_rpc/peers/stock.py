"""Find or fetch stock llama.cpp builds, a version of the RPC protocol each, and say how to run Python with them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import PeerError, cache_dir, fresh, locked, pip_install
from .glibc import Runtime, find_runtime, needs_runtime, prepare_runtime

PACKAGE = "llama_cpp_py_sync"
DISTRIBUTION = "llama-cpp-py-sync"


@dataclass(frozen=True)
class Build:
    """Name one stock build.

    Attributes
    ----------
    protocol : str
        Version of the RPC protocol, as ``major.minor``.
    version : str
        Version of the package on PyPI.
    sha256 : str
        Digest of its Linux x86-64 wheel.
    """

    protocol: str
    version: str
    sha256: str


BUILDS = {
    build.protocol: build
    for build in (
        Build("8.0", "0.11739", "c97dd32b41841ab779172f9d20616cc915a73045ae5dca4b81051e6cd2751714"),
        Build("7.0", "0.11413", "a720c62103640f20cbffb6ecbb4aa32e481a823976a229e0c4b359270847aa9f"),
    )
}


@dataclass(frozen=True)
class Peer:
    """Hold a stock llama.cpp that can be run on this machine.

    Attributes
    ----------
    protocol : str
        Version of the RPC protocol its client and server speak.
    version : str
        Version of its package.
    folder : pathlib.Path or None
        Folder of the cache that holds it; None if this environment has it installed.
    library_dir : pathlib.Path
        Folder of its shared libraries.
    runtime : Runtime or None
        The C library to run under; None where the system's own is new enough.
    """

    protocol: str
    version: str
    folder: Path | None
    library_dir: Path
    runtime: Runtime | None

    def python_command(self) -> list[str]:
        """Return the argv prefix that runs this interpreter with the peer importable.

        Returns
        -------
        list of str
            Append a script and its arguments. The process keeps one pid: ``env`` and the loader replace themselves.
        """
        python = [sys.executable]
        if self.runtime is not None:
            python = self.runtime.command(sys.executable, first=self.library_dir)
        if self.folder is None:
            return python
        path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH", "")]))
        return ["env", f"PYTHONPATH={path}", *python]

    def driver_command(self, arguments: Sequence[str]) -> list[str]:
        """Return the argv that runs the driver of this package in the peer's Python.

        Parameters
        ----------
        arguments : sequence of str
            Subcommand and options; see ``driver --help``.
        """
        return [*self.python_command(), str(Path(__file__).parent / "driver"), *arguments]


def _build(protocol: str) -> Build:
    if protocol not in BUILDS:
        raise PeerError(f"no stock peer speaks {protocol}; there are {', '.join(BUILDS)}")
    return BUILDS[protocol]


def _folder(root: Path, build: Build) -> Path:
    # cffi is an extension module, so each version of Python has its own folder.
    return root / "peers" / f"{DISTRIBUTION}-{build.version}-{sys.implementation.cache_tag}"


def _installed(build: Build) -> Path | None:
    """Return the folder of the build's libraries if this environment has exactly this version."""
    try:
        if importlib.metadata.version(DISTRIBUTION) != build.version:
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def find_peer(protocol: str = "8.0") -> Peer | None:
    """Return a stock peer that is already here, in this environment or in the cache, or None.

    Parameters
    ----------
    protocol : str
        Version of the RPC protocol, ``"8.0"`` or ``"7.0"``.

    Raises
    ------
    PeerError
        If no stock peer can run on this machine, or none speaks `protocol`.
    """
    build = _build(protocol)
    runtime = None
    if needs_runtime():
        runtime = find_runtime(cache_dir())
        if runtime is None:
            return None
    installed = _installed(build)
    if installed is not None:
        return Peer(protocol, build.version, None, installed, runtime)
    folder = _folder(cache_dir(), build)
    if folder.is_dir():
        return Peer(protocol, build.version, folder, folder / PACKAGE, runtime)
    return None


def prepare_peer(protocol: str = "8.0") -> Peer:
    """Return a stock peer, fetching what is missing into the cache folder.

    Parameters
    ----------
    protocol : str
        Version of the RPC protocol, ``"8.0"`` or ``"7.0"``.

    Raises
    ------
    PeerError
        If the peer cannot be had here; the message is one line.
    """
    ready = find_peer(protocol)
    if ready is not None:
        return ready
    build = _build(protocol)
    with locked() as root:
        if needs_runtime():
            prepare_runtime(root)
        folder = _folder(root, build)
        if _installed(build) is None and not folder.is_dir():
            with fresh(folder) as work:
                pip_install(work, [f"{DISTRIBUTION}=={build.version}"], hashes=[build.sha256])
                pip_install(work, ["cffi", "pycparser"])
    peer = find_peer(protocol)
    if peer is None:
        raise PeerError(f"the stock peer for {protocol} is not complete in {cache_dir()}")
    return peer
