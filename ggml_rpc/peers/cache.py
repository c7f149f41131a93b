"""Keep what the stock peers need in one cache folder, complete or absent."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


class PeerError(RuntimeError):
    """Say in one line why a stock peer or a model cannot be had here."""


def cache_dir() -> Path:
    """Return the cache folder: ``$GGML_RPC_CACHE``, else ``ggml-rpc`` in the user's cache folder.

    Returns
    -------
    pathlib.Path
        The folder; it need not exist yet.
    """
    chosen = os.environ.get("GGML_RPC_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base).absolute() / "ggml-rpc"
    try:
        return Path.home() / ".cache" / "ggml-rpc"
    except RuntimeError as error:  # no HOME and no entry in the user table
        raise PeerError("no home folder: set GGML_RPC_CACHE to a folder for downloads") from error


@contextmanager
def locked() -> Iterator[Path]:
    """Hold the cache folder's lock, so that processes which prepare at once do the work once.

    Yields
    ------
    pathlib.Path
        The cache folder, created if needed.
    """
    root = cache_dir()
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield root


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` if the block succeeds and vanishes if it fails.

    The rename is the last step, so `target` exists only when it is complete. Call with the lock held.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def run_tool(
    argv: Sequence[str], purpose: str, *, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run an external program and turn its failure into one line.

    Parameters
    ----------
    argv : sequence of str
        Program and arguments; standard output is discarded, unless a failure is told there alone.
    purpose : str
        What the call is for, the beginning of the error line.
    folder : pathlib.Path, optional
        Working folder of the program.
    environment : mapping of str to str, optional
        Variables set in addition to this process's own.

    Raises
    ------
    PeerError
        If the program is missing or exits with a non-zero status.
    """
    try:
        done = subprocess.run(
            argv,
            check=False,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise PeerError(f"{purpose}: no program {argv[0]!r} here") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        first = next((line for line in lines if " error: " in line), None)  # a compiler's, far from the end
        raise PeerError(f"{purpose}: {first or (lines[-1] if lines else f'exit status {done.returncode}')}")


def pip_install(target: Path, requirements: Sequence[str], *, hashes: Sequence[str] = ()) -> None:
    """Install wheels without their dependencies into a folder of the cache.

    Parameters
    ----------
    target : pathlib.Path
        Receives the packages; the environment that runs is left alone.
    requirements : sequence of str
        Exact requirements, such as ``cffi`` or ``name==1.0``.
    hashes : sequence of str
        Accepted SHA-256 digests in hex; if given, pip refuses any other file.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    pip += ["--only-binary", ":all:", "--target", str(target)]
    local = cache_dir() / "dl"  # wheels put here by hand serve machines without a network
    if local.is_dir():
        pip += ["--find-links", str(local)]
    purpose = f"pip could not fetch {' '.join(requirements)}"
    if not hashes:
        run_tool([*pip, *requirements], purpose)
        return
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "requirements.txt"
        pins = " ".join(f"--hash=sha256:{digest}" for digest in hashes)
        listing.write_text("".join(f"{name} {pins}\n" for name in requirements))
        run_tool([*pip, "--require-hashes", "-r", str(listing)], purpose)
