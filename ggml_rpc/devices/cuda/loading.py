"""From the names of kernels to functions of the driver: cache, compiler, module."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ggml_rpc.errors import DeviceError

from .compiler import Compiler
from .programs import ProgramCache, cache_folder, source_folder

# Kernels that are compiled in one go ahead of need: what they include is read once for all of them.
TOGETHER = 16


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def by_file(names: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return file -> expressions."""
    out: dict[str, list[str]] = {}
    for file, expression in names:
        out.setdefault(file, []).append(expression)
    return out


class Kernels:
    """The kernels of one architecture.

    Parameters
    ----------
    capability : int
        90 for 9.0.
    driver, nvrtc : module
        Of `cuda.bindings`.
    folder : Path, optional
        Where compiled programs are kept; by default what `cache_folder()` says.
    """

    def __init__(self, capability: int, driver: Any, nvrtc: Any, folder: Path | None = None) -> None:
        sources = source_folder()
        compiler = Compiler(capability, sources, nvrtc)
        self._driver = driver
        self._context = 0
        # Of the modules that are loaded in that context: kernel -> module and symbol.
        self._loaded: dict[tuple[str, str], tuple[Any, bytes]] = {}
        self.architecture = compiler.architecture
        self.cache = ProgramCache(compiler.compile, compiler.identity, folder or cache_folder(), sources)

    def load(self, names: Sequence[tuple[str, str]]) -> list[int]:
        """Return functions of the context that is current: the loader of `CudaGpu`.

        A module is loaded once a context, whichever of its kernels is asked for first.
        """
        context = int(self._call("cuCtxGetId", self._call("cuCtxGetCurrent")))  # an id is never used again
        if context != self._context:
            self._context = context
            self._loaded = {}
        for file, expressions in by_file([name for name in names if name not in self._loaded]).items():
            for program in self.cache.programs(file, expressions):
                module = self._call("cuModuleLoadData", program.code)
                for expression, symbol in program.kernels.items():
                    self._loaded.setdefault((file, expression), (module, symbol.encode()))
        return [int(self._call("cuModuleGetFunction", *self._loaded[name])) for name in names]

    def warm_up(self, names: Sequence[tuple[str, str]], progress: Callable[[int, int], None]) -> None:
        """Compile what is not on disk, on all cores.

        Parameters
        ----------
        names : sequence of (str, str)
            File and expression of each kernel.
        progress : callable
            Takes how many are there, and how many there are to be.
        """
        batches: list[tuple[str, list[str]]] = []
        for file, expressions in by_file(names).items():
            missing = self.cache.missing(file, expressions)
            batches += [(file, missing[i : i + TOGETHER]) for i in range(0, len(missing), TOGETHER)]
        done = len(names) - sum(len(batch) for _, batch in batches)
        progress(done, len(names))
        lock = threading.Lock()

        def compile_batch(batch: tuple[str, list[str]]) -> None:
            nonlocal done
            self.cache.programs(*batch)
            with lock:
                done += len(batch[1])
                progress(done, len(names))

        # Who is interrupted, or fails, waits for what is being compiled, not for what is to come.
        with ThreadPoolExecutor(processors(), thread_name_prefix="compile") as pool:
            try:
                for batch in [pool.submit(compile_batch, batch) for batch in batches]:
                    batch.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status) != 0:
            raise DeviceError(f"{name} failed for {self.architecture}: {status!r}")
        return values[0]
