"""How far loading is: bars on a terminal, a line for each device elsewhere."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TextIO

from .text import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ggml_rpc.llm.loader import LoadProgress


class Bars:
    """Show progress by name. Callable from any thread.

    Parameters
    ----------
    stream : file
        Where to; bars are drawn if it is a terminal and the package `rich` is there.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._drawn: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        # When something was first heard of, and how much of it was done then.
        self._begun: dict[str, tuple[float, int]] = {}
        self._finished: set[str] = set()

    def loading(self, progress: LoadProgress) -> None:
        """Take what a loader tells."""
        done, total, cached = progress.bytes_done, progress.bytes_total, progress.bytes_cached
        note = f", {size(cached)} of it were there already" if cached else ""
        self.show(str(progress.device), done, total, note)

    def fetching(self, name: str, done: int, total: int | None) -> None:
        """Take what a download tells."""
        self.show(name, done, total)

    def show(self, name: str, done: int, total: int | None, note: str = "") -> None:
        """Show how many bytes of something are done."""
        with self._lock:
            now = time.perf_counter()
            if name not in self._begun:
                self._begun[name] = now, done
                self._begin(name, done, total)
            if self._drawn is not None:
                self._drawn.update(self._tasks[name], completed=done, total=total)
            if done == total and name not in self._finished:
                self._finished.add(name)
                if self._drawn is None:
                    begin, first = self._begun[name]
                    rate = f", {size((done - first) / (now - begin))}/s" if done > first and now > begin else ""
                    print(f"{name}: {size(done)}{rate}{note}", file=self._stream, flush=True)

    def finish(self) -> None:
        """Take the bars away; what comes later begins anew."""
        with self._lock:
            if self._drawn is not None:
                self._drawn.stop()
            self._drawn = None
            self._tasks.clear()
            self._begun.clear()
            self._finished.clear()

    def _begin(self, name: str, done: int, total: int | None) -> None:
        if self._drawn is None:
            self._drawn = _drawing(self._stream)
            if self._drawn is not None:
                self._drawn.start()
        if self._drawn is not None:
            self._tasks[name] = self._drawn.add_task(name, total=total, completed=done)


def _drawing(stream: TextIO) -> Progress | None:
    """Return what draws bars, or None where it cannot."""
    if not stream.isatty():
        return None
    try:
        from rich.console import Console  # noqa: PLC0415  an optional package, slow to import
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ModuleNotFoundError:
        return None
    console = Console(file=stream)
    if console.is_dumb_terminal:
        return None
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
