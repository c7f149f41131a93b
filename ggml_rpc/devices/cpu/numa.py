"""Memory nodes of this machine, and where threads and buffers go on them.

A core reads the memory of another node slowly. Which worker takes which rows changes from run to run, so no row has a
worker of its own; what can be chosen is that all nodes' memory is read at once, or that one node is kept to.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ggml_rpc.errors import DeviceError

MODES = ("distribute", "isolate")
NODES = Path("/sys/devices/system/node")


class Placement(NamedTuple):
    """Where a pool's memory and threads go.

    Attributes
    ----------
    nodes : list of int
        The pages of buffers are dealt out to the memory of these nodes in turn.
    cpus : list of list of int
        Worker i runs on the processors `cpus[i % len(cpus)]`.
    """

    nodes: list[int]
    cpus: list[list[int]]


def parse_list(text: str) -> list[int]:
    """Return the numbers of a list as Linux writes it, such as `0-3,8`."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.extend(range(int(first), int(last or first) + 1))
    return numbers


def read_nodes(folder: Path = NODES, allowed: Sequence[int] | None = None) -> dict[int, list[int]]:
    """Return the processors of each node that has memory and processors this process may use.

    Parameters
    ----------
    folder : Path
        Where Linux describes nodes.
    allowed : sequence of int, optional
        The processors that count; by default those that this process may run on.

    Raises
    ------
    DeviceError
        If the system does not describe its nodes.
    """
    try:
        with_memory = parse_list((folder / "has_memory").read_text())
        cpus = {node: parse_list((folder / f"node{node}" / "cpulist").read_text()) for node in with_memory}
    except (OSError, ValueError) as error:
        raise DeviceError(f"NUMA: this system does not describe its memory nodes ({error})") from error
    usable = set(os.sched_getaffinity(0) if allowed is None else allowed)
    found = {node: [cpu for cpu in sorted(numbers) if cpu in usable] for node, numbers in cpus.items()}
    return {node: numbers for node, numbers in sorted(found.items()) if numbers}


def placement(mode: str, nodes: dict[int, list[int]]) -> Placement:
    """Return where threads and memory go.

    Parameters
    ----------
    mode : str
        `distribute`: threads and memory evenly on all nodes. `isolate`: all on one node, that with most processors;
        where the process was bound to processors, these decide.
    nodes : dict
        Usable processors of each node, from `read_nodes`.

    Raises
    ------
    DeviceError
        If the mode is none of `MODES`, or no node has usable processors.
    """
    if mode not in MODES:
        raise DeviceError(f"NUMA: {mode!r} is none of {', '.join(MODES)}")
    if not nodes:
        raise DeviceError("NUMA: no memory node has processors that this process may use")
    if mode == "distribute":
        return Placement(list(nodes), list(nodes.values()))
    node = max(nodes, key=lambda n: len(nodes[n]))
    return Placement([node], [nodes[node]])


def place(mode: str) -> Placement:
    """Return where threads and memory go on this machine; see `placement`."""
    return placement(mode, read_nodes())
