"""Measure the floors that the hardware sets: memory read and multiply-adds a second. ``python -m bench.floors``.

They are measured by ``floors.c``, compiled for this machine at the first use. Without a C compiler only the memory is
measured, by NumPy.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ggml_rpc.peers import cache_dir
from ggml_rpc.peers.cache import fresh, locked, run_tool

from . import machine

SOURCE = Path(__file__).with_name("floors.c")
UNITS = ("int8", "f32", "bf16")
Question = tuple[str, str, int]  # kind, level, threads


def program() -> Path | None:
    """Return the compiled program, or None where there is no compiler.

    Raises
    ------
    PeerError
        If it does not compile.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return None
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / f"floors-{digest}"
    if not folder.is_dir():
        with locked():
            if not folder.is_dir():
                with fresh(folder) as work:
                    command = [*compiler, "-O2", "-pthread", str(SOURCE), "-o", str(work / "floors")]
                    run_tool(command, f"{SOURCE.name} does not compile")
    return folder / "floors"


def measure(questions: Sequence[Question]) -> list[float]:
    """Return bytes or multiply-adds a second of all threads together, 0 for what this machine lacks.

    Parameters
    ----------
    questions : sequence of (str, str, int)
        Kind (``memory``, ``int8``, ``f32``, ``bf16``), level (``any`` or one of ours but ``baseline``) and threads.
    """
    path = program()
    if path is None:
        return [machine.memory_read(threads) if kind == "memory" else 0.0 for kind, _level, threads in questions]
    answers = []
    for kind, level, threads in questions:  # a process each: a level that the system refuses ends only its own
        command = [str(path), kind, level, str(threads)]
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        answers.append(float(done.stdout) if done.returncode == 0 else 0.0)
    return answers


def memory_read(threads: int) -> float:
    """Return the bytes a second that `threads` threads together read from memory."""
    return measure([("memory", "any", threads)])[0]


def main() -> None:
    """Print the floors of this machine."""
    cores = len(os.sched_getaffinity(0))
    questions: list[Question] = [("memory", "any", threads) for threads in sorted({1, cores})]
    questions += [(kind, level, cores) for kind in UNITS for level in ("amx", "avx512", "avxvnni", "avx2")]
    for (kind, level, threads), value in zip(questions, measure(questions), strict=True):
        if value:
            unit = "GB/s" if kind == "memory" else "GMAC/s"
            print(f"{kind:7} {level:7} {threads} thread(s) {value / 1e9:8.1f} {unit}", flush=True)


if __name__ == "__main__":
    main()
