"""Measure matrix products of every type against the floors of this machine: ``python -m bench.kernels``.

Decode (one column) streams distinct weights that no cache holds: its floor is reading memory. With many columns the
floor is the rate of multiply-adds on registers: 8-bit ones for quantised weights, of single precision or bfloat16 for
the others. Floors and products are measured in turns; the best floor counts, and of a product the median round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from ggml_rpc.devices.cpu import CpuPool, levels
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops.test_matmul import TYPES
from tests.support.device import Bench

from . import floors, opponents, store
from .kernels_matmul import product_runs, seconds
from .machine import describe

COMMON = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
FLOATS = ("F32", "F16", "BF16")
COLUMNS = (1, 8, 512)
SIZE = 4096  # rows and columns of a matrix: 8 MB in 4 bits
STREAM = 160 << 20  # bytes of weights that decode runs over


def compute_floors(level: str, threads: int) -> dict[str, float]:
    """Return multiply-adds a second on registers that a level reaches; a level lacks what is not there."""
    if level == "baseline":
        return {}
    found = floors.measure([(kind, level, threads) for kind in floors.UNITS])
    if level == "amx":  # single precision stays in vectors
        found[floors.UNITS.index("f32")] = floors.measure([("f32", "avx512", threads)])[0]
    return {kind: value for kind, value in zip(floors.UNITS, found, strict=True) if value}


def measure_type(type_name: str, columns: Sequence[int], args: argparse.Namespace) -> dict[str, float]:
    """Return the rate by number of columns: bytes a second for one, multiply-adds a second for more."""
    rates = {}
    device = CpuPool(args.threads, args.isa).device()
    for n in columns:
        total = STREAM if n <= 8 else 1
        bench = Bench(device, total + 12 * (2 * SIZE) * 600 + 8 * SIZE * SIZE)
        product, count = product_runs(bench, type_name, (SIZE, SIZE, n), total)
        amount = TYPE_BY_NAME[type_name].row_bytes(SIZE * SIZE) if n == 1 else SIZE * SIZE * n
        product()
        rates[str(n)] = amount * count / statistics.median(seconds(product) for _ in range(args.rounds))
    return rates


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the options ask for and return the record."""
    memory: list[float] = []
    compute: dict[str, list[float]] = {}
    rates = {}
    for type_name in args.types:
        memory.append(floors.memory_read(args.threads))
        for kind, value in compute_floors(args.isa, args.threads).items():
            compute.setdefault(kind, []).append(value)
        rates[type_name] = measure_type(type_name, args.columns, args)
        cells = [f"n={n} {rate / 1e9:7.1f} {'GB/s' if n == '1' else 'GMAC/s'}" for n, rate in rates[type_name].items()]
        print(f"{args.isa} {type_name:8} " + "   ".join(cells), flush=True)
    floor = {"memory": max(memory), **{kind: max(values) for kind, values in compute.items()}}
    print("floors: " + ", ".join(f"{kind} {value / 1e9:.1f}" for kind, value in floor.items()))
    return {
        "kind": "kernels",
        "machine": describe(),
        "level": args.isa,
        "threads": args.threads,
        "size": SIZE,
        "command": args.command,
        "floors": floor,
        "rates": rates,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help=f"of {', '.join(TYPES)}; the common ones")
    parser.add_argument("--isa", default=levels()[0], choices=levels(), help="instruction-set level")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--columns", type=int, nargs="+", default=COLUMNS)
    parser.add_argument("--rounds", type=int, default=7)
    store.add_arguments(parser)
    args = parser.parse_args(words)
    args.types = args.types or list(COMMON)
    if not set(args.types) <= set(TYPES):
        parser.error(f"types are {', '.join(TYPES)}")
    args.command = opponents.plain(["python", "-m", "bench.kernels", *words])
    store.save(run(args), args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
