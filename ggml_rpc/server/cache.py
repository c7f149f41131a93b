"""The tensor cache on disk: files named by the hash of their bytes, shared with stock servers.

Whoever may use the cache trusts all its users: FNV-1a is no defence against a client that makes another tensor with the
same hash.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from ._session import Session
from .verified import Verified, stamp_of

log = logging.getLogger(__name__)

# A cache must not fill the disk that the machine works on.
KEEP_FREE_BYTES = 1 << 30


def cache_directory() -> Path | None:
    """Return the folder that stock servers use, or None where the environment names no place for it.

    `$LLAMA_CACHE/rpc`, else `$XDG_CACHE_HOME/llama.cpp/rpc`, else `~/.cache/llama.cpp/rpc`.
    """
    if root := os.environ.get("LLAMA_CACHE"):
        return Path(root) / "rpc"
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root) / "llama.cpp" / "rpc"
    if root := os.environ.get("HOME"):
        return Path(root) / ".cache" / "llama.cpp" / "rpc"
    return None


class TensorCache:
    """Tensors by the hash of their bytes.

    Parameters
    ----------
    directory : Path
        Created where it does not exist.

    Raises
    ------
    OSError
        If the folder cannot be made or is not writable.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(f"the cache folder {directory} is not writable")
        self.directory = directory
        # Hashes whose file was found damaged; the next tensor with that hash replaces it.
        self._damaged: set[int] = set()
        self._verified = Verified(directory)

    def path(self, tensor_hash: int) -> Path:
        """Return where the tensor with this hash lies, if it is there."""
        return self.directory / f"{tensor_hash:016x}"

    def load(self, session: Session) -> bool:
        """Fill the tensor that the session was asked for from its file; False if it is not here or not intact."""
        path = self.path(session.argument)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as e:
            log.warning("cache file %s cannot be read: %s", path, e.strerror)
            return False
        try:
            stamp = stamp_of(fd)
            size = stamp.size
            # A file that was hashed before and is as it was need not be hashed again.
            hit = self._verified.holds(path.name, stamp) and session.load(fd, size, verify=False)
            if not hit or stamp_of(fd) != stamp:
                hit = session.load(fd, size)
                if hit:
                    self._verified.add(path.name, stamp)
        finally:
            os.close(fd)
        if hit:
            # Clients ask in the order in which they sent: while this one hashes its next tensor, so does the server.
            self._verified.look_ahead(path.name)
        else:
            log.warning("cache file %s (%d bytes) does not fit its name or the tensor; not used", path, size)
            self._damaged.add(session.argument)
        return hit

    def store(self, session: Session) -> None:
        """Keep the tensor that the session just received; a failure is logged and costs nothing else."""
        tensor_hash = session.hash_region()
        path = self.path(tensor_hash)
        size = session.region_bytes
        try:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size == size and tensor_hash not in self._damaged:
                    return
            free = shutil.disk_usage(self.directory).free
            if free - size < KEEP_FREE_BYTES:
                log.warning("tensor of %d bytes not cached: %s has %d bytes free", size, self.directory, free)
                return
            self._write(session, path)
            self._damaged.discard(tensor_hash)
            self._verified.written(path.name)
        except OSError as e:
            log.warning("tensor of %d bytes not cached in %s: %s", size, self.directory, e.strerror)

    def _write(self, session: Session, path: Path) -> None:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=self.directory)
        try:
            try:
                session.store(fd)
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
