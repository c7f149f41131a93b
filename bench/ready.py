"""Have what a load needs at hand before it is timed: the file in the system's cache, and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Takes memory, writes to every page, and keeps it for a while.
HOLD = """
import sys, time, numpy
held = numpy.ones(int(sys.argv[1]), numpy.uint8)
time.sleep(float(sys.argv[2]))
"""
# Linux tells the host of free memory 2 s after some of it became free.
HELD_SECONDS = 3


def read_once(path: Path) -> None:
    """Bring a file into the system's cache, lest the first turn reads a disk."""
    with open(path, "rb", buffering=0) as file:
        while file.read(16 << 20):
            pass


def hold_memory(size: int) -> None:
    """Hold `size` bytes of memory for three seconds, and free them.

    A virtual machine gives memory that lies free for seconds back to its host; whoever takes it next waits for it,
    2.4 s a GB on the machine of the README instead of 0.14. No server could help that. Memory that is held until
    nothing else is being given back, and freed when the load begins, is had at once for two seconds.
    """
    subprocess.run([sys.executable, "-c", HOLD, str(size), str(HELD_SECONDS)], check=True)
