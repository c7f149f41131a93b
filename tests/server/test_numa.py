"""Where threads and memory go on machines with several memory nodes, told from descriptions of such machines."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.devices.cpu.numa import Placement, parse_list, placement, read_nodes
from ggml_rpc.errors import DeviceError
from tests.support.device import Bench


def describe(folder: Path, cpulists: dict[int, str], has_memory: str) -> Path:
    """Write what Linux says of nodes."""
    (folder / "has_memory").write_text(has_memory + "\n")
    for node, cpus in cpulists.items():
        (folder / f"node{node}").mkdir()
        (folder / f"node{node}" / "cpulist").write_text(cpus + "\n")
    return folder


@pytest.mark.parametrize(
    ("text", "numbers"), [("", []), ("\n", []), ("3", [3]), ("0-3,8", [0, 1, 2, 3, 8]), ("1,4-5\n", [1, 4, 5])]
)
def test_lists(text: str, numbers: list[int]) -> None:
    assert parse_list(text) == numbers


def test_nodes_without_memory_or_usable_processors_do_not_count(tmp_path: Path) -> None:
    folder = describe(tmp_path, {0: "0-3", 1: "4-7", 2: "8-11", 3: ""}, "0-1,3")
    assert read_nodes(folder, allowed=[2, 3, 4, 9]) == {0: [2, 3], 1: [4]}


def test_a_system_that_says_nothing_of_nodes(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not describe its memory nodes"):
        read_nodes(tmp_path)


def test_distribute_takes_all_nodes() -> None:
    assert placement("distribute", {0: [0, 1], 2: [4, 5]}) == Placement([0, 2], [[0, 1], [4, 5]])


def test_isolate_keeps_to_the_node_with_most_processors() -> None:
    assert placement("isolate", {0: [0], 1: [4, 5]}) == Placement([1], [[4, 5]])
    assert placement("isolate", {0: [0, 1], 1: [4, 5]}) == Placement([0], [[0, 1]])


def test_no_node_and_no_such_mode() -> None:
    with pytest.raises(DeviceError, match="no memory node"):
        placement("distribute", {})
    with pytest.raises(DeviceError, match="'mirror' is none of distribute, isolate"):
        placement("mirror", {0: [0]})


def pool_or_skip(where: Placement) -> CpuPool:
    """Open a pool; skip where a sandbox forbids memory policies."""
    try:
        return CpuPool(2, placement=where)
    except DeviceError as error:
        if "not permitted" in str(error) or "not implemented" in str(error):
            pytest.skip(str(error))
        raise


def test_workers_run_where_they_were_put_and_memory_lies_on_the_node(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    before = set(os.listdir("/proc/self/task"))
    pool = pool_or_skip(Placement([0], [[cpus[0]], cpus]))
    workers = sorted(set(os.listdir("/proc/self/task")) - before, key=int)
    bench = Bench(pool.device(), size=32 << 20)
    a = np.arange(100_000, dtype=np.float32)
    node = bench.node("ADD", "F32", a.shape, [bench.put(a), bench.put(a)])
    bench.run(node)
    np.testing.assert_array_equal(np.asarray(bench.read(node)).ravel(), 2 * a)
    allowed = [os.sched_getaffinity(int(worker)) for worker in workers]
    assert {cpus[0]} in allowed
    assert set(cpus) in allowed
    maps = Path("/proc/self/numa_maps")
    if maps.exists():
        assert "interleave:0" in maps.read_text()


def test_a_node_that_is_not_there() -> None:
    with pytest.raises(DeviceError, match="does not let memory be placed on NUMA nodes"):
        CpuPool(1, placement=Placement([900], [[0]]))
