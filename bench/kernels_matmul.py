"""Measure matrix products per weight type: decode against memory bandwidth, prefill in multiply-adds a second.

Decode runs products over distinct weights that are far larger than the caches. The floors beside them are measured in
the same run, in turns with the products: reading memory on the same number of threads, and NumPy's f32 product. Every
figure is the median of several rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ggml_rpc.devices.cpu import CpuPool, levels
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops.test_matmul import TYPES, weights
from tests.support.device import Bench


def seconds(call: Callable[[], object], cpu_threads: int = 0) -> float:
    """Return how long a call takes; with `cpu_threads`, the processor time that it uses on each of so many threads."""
    clock = time.process_time if cpu_threads else time.perf_counter
    begin = clock()
    call()
    return (clock() - begin) / max(1, cpu_threads)


def read_memory(x: np.ndarray, threads: int) -> None:
    """Read an f32 array once, a part a thread."""
    parts = np.array_split(x, threads)
    workers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts[1:]]
    for worker in workers:
        worker.start()
    np.dot(parts[0], parts[0])
    for worker in workers:
        worker.join()


def product_runs(
    bench: Bench, type_name: str, shape: tuple[int, int, int], total: int
) -> tuple[Callable[[], object], int]:
    """Return a run over distinct matrices of together about `total` bytes, and their number; shape is (m, k, n)."""
    m, k, n = shape
    rng = np.random.default_rng(7)
    count = max(1, total // TYPE_BY_NAME[type_name].row_bytes(m * k))
    data, _ = weights(rng, type_name, (m, k))
    x = bench.put(rng.standard_normal((n, k)).astype(np.float32))
    out = bench.place("F32", (n, m))
    nodes = []
    for _ in range(count):
        w = bench.put_raw(type_name, (m, k), data)
        nodes.append(bench.node("MUL_MAT", "F32", (n, m), [w, x], out=out))
    return bench.compile(nodes).run, count


def main() -> None:
    """Print the table and, on request, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--level", default=levels()[0], choices=levels() + levels(emulated=True))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--columns", type=int, nargs="+", default=[1, 4, 8, 32, 512])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mib", type=int, default=160, help="weights that decode runs over")
    parser.add_argument("--cpu", action="store_true", help="processor time: steadier beside other load")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cpu_threads = args.threads if args.cpu else 0

    device = CpuPool(args.threads, args.level).device()
    memory = np.ones(64 << 20, np.float32)
    a = np.ones((1024, 1024), np.float32)
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "memory": (lambda: read_memory(memory, args.threads), memory.nbytes / 1e9),
        "numpy f32": (lambda: a @ a, 1024**3 / 1e9),
    }
    result: dict[str, float] = {}
    for type_name in args.types:
        for n in args.columns:
            few = n <= 8
            total = args.mib << 20 if few else 1
            bench = Bench(device, total + 4 * (args.rows + args.k) * 600 * 3 + 8 * args.rows * args.k)
            run, count = product_runs(bench, type_name, (args.rows, args.k, n), total)
            size = TYPE_BY_NAME[type_name].row_bytes(args.rows * args.k) if n == 1 else args.rows * args.k * n
            run()
            for name, (call, _) in calls.items():
                result.setdefault(name, 0.0)
                call()
            times: dict[str, list[float]] = {"memory": [], "numpy f32": [], "run": []}
            for _ in range(args.rounds):
                for name, (call, _) in calls.items():
                    times[name].append(seconds(call, cpu_threads))
                times["run"].append(seconds(run, cpu_threads))
            for name, (_, amount) in calls.items():
                result[name] = max(result[name], amount / statistics.median(times[name]))
            rate = size * count / 1e9 / statistics.median(times["run"])
            floor = calls["memory"][1] / statistics.median(times["memory"])
            result[f"{type_name} n={n}"] = rate
            note = f"GB/s, memory {floor:5.1f}" if n == 1 else "GMAC/s"
            print(f"{args.level} {type_name:7s} n={n:<4d} {rate:8.1f} {note}", flush=True)
            del bench, run
    print(f"floors: memory {result['memory']:.1f} GB/s, NumPy f32 product {result['numpy f32']:.1f} GMAC/s")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
