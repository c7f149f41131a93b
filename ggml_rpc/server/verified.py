"""Which files of the tensor cache were found to hold what their names say."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ggml_rpc.wire._hash import fnv1a_64

# Files change without a new time within a tick of the clock: what is younger than this is not trusted.
SETTLED_NS = 2_000_000_000
CHUNK_BYTES = 1 << 20
# Files hashed ahead of the one that was asked for.
AHEAD = 2
LOWEST_PRIORITY = 19


class Stamp(NamedTuple):
    """What changes when a file's content does."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def stamp_of(fd: int) -> Stamp:
    """Return the stamp of an open file."""
    s = os.fstat(fd)
    return Stamp(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


def _started(work: Callable[[], None], name: str) -> bool:
    """Run in a thread; False if there is none to be had: what it would do is asked for again or not needed."""
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except (RuntimeError, MemoryError):
        return False
    return True


class Verified:
    """Remember, for the life of the process, files whose content was hashed, and hash those that come next.

    Parameters
    ----------
    directory : Path
        The cache's folder; a file's name is its hash, 16 hexadecimal digits.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._stamps: dict[str, Stamp] = {}
        # Names in the order in which the files were written, and where each stands.
        self._order: list[str] = []
        self._place: dict[str, int] = {}
        self._wanted: list[str] = []
        self._running = False
        # Files that this process wrote, to be hashed once the last of them is old enough.
        self._written: list[str] = []
        self._settled_at = 0.0
        self._settling = False

    def holds(self, name: str, stamp: Stamp) -> bool:
        """Tell whether the file was verified and is as it was."""
        with self._lock:
            return self._stamps.get(name) == stamp

    def add(self, name: str, stamp: Stamp) -> None:
        """Remember a file that had this stamp before it was hashed; one that changed just now is left out."""
        if max(stamp.modified_ns, stamp.changed_ns) + SETTLED_NS < time.time_ns():
            with self._lock:
                self._stamps[name] = stamp

    def written(self, name: str) -> None:
        """Have a file that was written just now verified when writing has ceased and its time says enough.

        The next client that loads the model finds all of it verified. It takes 0.3 s a gigabyte of a thread that
        gives way to all others.
        """
        with self._lock:
            self._written.append(name)
            self._settled_at = time.monotonic() + SETTLED_NS / 1e9 + 0.1
            if not self._settling:
                self._settling = _started(self._run_written, "verify-written")

    def look_ahead(self, name: str) -> None:
        """Have the files that were written after this one made ready: asked of the disk, and verified if they are not.

        Verifying happens in a thread that ends when that is done.
        """
        with self._lock:
            if name not in self._place:
                try:
                    self._list()
                except OSError:  # a folder whose files may be opened but not listed, or that was moved away
                    return
            place = self._place.get(name)
            if place is None:
                return
            coming = self._order[place + 1 : place + 1 + AHEAD]
            self._wanted = [n for n in coming if n not in self._stamps]
            known = [n for n in coming if n in self._stamps]
            if self._wanted and not self._running:
                self._running = _started(self._run, "verify")
        for n in known:
            self._fetch(n)

    def _fetch(self, name: str) -> None:
        """Tell the system that a file will be read soon; what it has in memory already costs a few microseconds."""
        with contextlib.suppress(AttributeError, OSError):  # not every system can be told
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)

    def _list(self) -> None:
        rows = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                try:
                    if len(entry.name) == 16:
                        rows.append((entry.stat().st_mtime_ns, entry.name))
                except FileNotFoundError:  # another server replaced it
                    continue
        self._order = [name for _, name in sorted(rows)]
        self._place = {name: i for i, name in enumerate(self._order)}

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._running = False
                    return
                name = self._wanted.pop(0)
            self._verify(name)

    def _run_written(self) -> None:
        with contextlib.suppress(AttributeError, OSError):  # on Linux a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while True:
            with self._lock:
                if not self._written:
                    self._settling = False
                    return
                delay = self._settled_at - time.monotonic()
                name = self._written.pop(0) if delay <= 0 else ""
            if name:
                self._verify(name)
            else:
                time.sleep(delay)

    def _verify(self, name: str) -> None:
        """Hash one file; what cannot be read or does not fit is found out when it is asked for."""
        try:
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            stamp = stamp_of(fd)
            chunk = memoryview(bytearray(CHUNK_BYTES))
            state, at = fnv1a_64(b""), 0
            while n := os.preadv(fd, [chunk], at):
                state = fnv1a_64(chunk[:n], state)
                at += n
            if at == stamp.size and f"{state:016x}" == name and stamp_of(fd) == stamp:
                self.add(name, stamp)
        except OSError:
            return
        finally:
            os.close(fd)
