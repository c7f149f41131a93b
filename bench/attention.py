"""Measure attention by context, cache type and shape of the heads against its floors: ``python -m bench.attention``.

Decode runs over caches that the processor's do not hold. Its floors are the bytes of K and V, read once for all heads
that share them, over the memory's speed, and its multiply-adds over their rate in single precision. Prefill attends the
last positions of the context under a causal mask; what no query sees counts for nothing. ``flash off`` is what a client
sends without flash attention: scores, softmax, weights times V, which lies transposed. Floors and attention are
measured in turns, and each figure is the median of several rounds. End to end see ``bench.scaling context``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggml_rpc.devices.cpu import CpuPool, levels
from ggml_rpc.spec.types import TYPE_BY_NAME
from tests.ops.test_matmul import weights
from tests.support.device import Bench
from tests.support.wiretensor import Tensor

from . import floors, opponents
from .kernels_matmul import seconds
from .machine import describe

SHAPES = {"tinyllama": (64, 32, 4), "llama": (128, 32, 8), "gemma": (256, 4, 1)}  # head size, heads, KV heads
CACHE_TYPES = ("F16", "Q8_0", "Q4_0", "BF16", "F32")
QUANTISED = {"Q8_0", "Q4_0"}  # clients refuse such a V without flash attention


def causal(n_q: int, n_kv: int) -> np.ndarray:
    """Return the mask of the last `n_q` of `n_kv` positions."""
    mask = np.zeros((1, 1, n_q, n_kv), np.float16)
    mask[0, 0][np.arange(n_kv)[None] > (n_kv - n_q + np.arange(n_q))[:, None]] = -np.inf
    return mask


class Layers:
    """Hold as many caches as exceed `total` bytes and the nodes that attend to them.

    K lies as caches do: the heads of a token side by side. V likewise, or transposed where flash attention is off.
    """

    def __init__(
        self, pool: CpuPool, shape: tuple[int, int, int], cache: str, n_q: int, n_kv: int, *, total: int, flash: bool
    ) -> None:
        self.d, self.n_head, self.n_head_kv = shape
        self.cache, self.n_q, self.n_kv = cache, n_q, n_kv
        self.row = TYPE_BY_NAME[cache].row_bytes(self.d * self.n_head_kv)
        self.bytes = 2 * self.row * n_kv
        self.count = max(1, min(64, total // self.bytes))
        results = 16 * self.d * self.n_head * n_q + (0 if flash else 8 * self.n_head * n_q * n_kv)
        self.bench = Bench(pool.device(), self.count * self.bytes + results + 4 * n_q * n_kv + (4 << 20))
        rng = np.random.default_rng(3)
        q = rng.standard_normal((n_q, self.n_head, self.d)).astype(np.float32)
        self.q = self.bench.permute(self.bench.put(q), (0, 2, 1, 3))
        self.data = weights(rng, cache, (n_kv, self.d * self.n_head_kv))[0]
        mask = causal(n_q, n_kv)
        self.mask = self.bench.put(mask if flash else mask.astype(np.float32))
        nodes: list[Tensor] = []
        if flash:
            self.out = self.bench.place("F32", (1, n_q, self.n_head, self.d))
            for _ in range(self.count):
                nodes += self.flash()
        else:
            self.out = self.bench.place("F32", (1, self.n_head, n_q, self.d))
            scores = self.bench.place("F32", (1, self.n_head, n_q, n_kv))
            for _ in range(self.count):
                nodes += self.plain(scores)
        self.plan = self.bench.compile(nodes)

    def heads(self) -> Tensor:
        """Return a new cache as (KV head, position, channel)."""
        kind = TYPE_BY_NAME[self.cache]
        base = self.bench.put_raw(self.cache, (self.n_kv, self.d * self.n_head_kv), self.data)
        return self.bench.view(
            base,
            self.cache,
            (self.n_head_kv, self.n_kv, self.d),
            (kind.row_bytes(self.d), self.row, kind.bytes),
        )

    def node(self, op: str, sources: list[Tensor | None], params: bytes, out: Tensor) -> Tensor:
        """Return a node whose result lies in `out`, and take back the memory that `Bench` gave it."""
        used = self.bench.used
        node = self.bench.node(op, "F32", tuple(reversed(out.ne)), sources, params, out=out)
        self.bench.used = used
        return node

    def flash(self) -> list[Tensor]:
        """Return the node of one layer."""
        params = struct.pack("<3fi", self.d**-0.5, 0.0, 0.0, 0)
        return [self.node("FLASH_ATTN_EXT", [self.q, self.heads(), self.heads(), self.mask], params, self.out)]

    def plain(self, scores: Tensor) -> list[Tensor]:
        """Return the nodes of one layer without flash attention."""
        size = TYPE_BY_NAME[self.cache].bytes
        base = self.bench.put_raw(self.cache, (self.d * self.n_head_kv, self.n_kv), self.data)
        v = self.bench.view(
            base,
            self.cache,
            (self.n_head_kv, self.d, self.n_kv),
            (self.d * self.n_kv * size, self.n_kv * size, size),
        )
        kq = self.node("MUL_MAT", [self.heads(), self.q], b"", scores)
        soft = self.node("SOFT_MAX", [kq, self.mask], struct.pack("<2f", self.d**-0.5, 0.0), scores)
        return [kq, soft, self.node("MUL_MAT", [v, soft], b"", self.out)]


def multiply_adds(shape: tuple[int, int, int], n_q: int, n_kv: int) -> int:
    """Return the multiply-adds of both products for the positions that each query sees."""
    d, n_head, _ = shape
    return 2 * d * n_head * sum(n_kv - n_q + 1 + i for i in range(n_q))


def measure(pool: CpuPool, point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one point beside its floors, all in microseconds a layer."""
    shape, n_q, n_kv = SHAPES[point["shape"]], point["queries"], point["context"]
    total = args.mib << 20 if n_q <= 8 else 1
    layers = Layers(pool, shape, point["type"], n_q, n_kv, total=total, flash=point["flash"] == "on")
    level = "avx512" if args.isa == "amx" else args.isa  # single precision stays in vectors
    questions = [("memory", "any", args.threads), ("f32", level, args.threads)]
    layers.plan.run()
    turns, rates = [], []
    for _ in range(args.rounds):
        rates.append(floors.measure(questions))
        turns.append(seconds(layers.plan.run, args.threads if args.cpu else 0) / layers.count * 1e6)
    memory, compute = (statistics.median(column) for column in zip(*rates, strict=True))
    us = statistics.median(turns)
    floor_bytes = layers.bytes / memory * 1e6
    floor_adds = multiply_adds(shape, n_q, n_kv) / compute * 1e6 if compute else 0.0
    return {**point, "us": us, "floor_bytes_us": floor_bytes, "floor_multiply_adds_us": floor_adds}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--types", nargs="+", default=list(CACHE_TYPES), choices=CACHE_TYPES)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 4096, 8192])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 512])
    parser.add_argument("--flash", nargs="+", default=["on", "off"], choices=("on", "off"))
    parser.add_argument("--isa", default=levels()[0], choices=levels(), help="instruction-set level")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=96, help="caches that decode runs over")
    parser.add_argument("--cpu", action="store_true", help="processor time: steadier beside other load")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(words)

    pool = CpuPool(args.threads, args.isa)
    rows = []
    for shape, flash, kind, n_q, n_kv in itertools.product(
        args.shapes, args.flash, args.types, args.queries, args.contexts
    ):
        if n_q > n_kv or (flash == "off" and kind in QUANTISED):
            continue
        point = {"shape": shape, "flash": flash, "type": kind, "queries": n_q, "context": n_kv}
        row = measure(pool, point, args)
        rows.append(row)
        floor = max(row["floor_bytes_us"], row["floor_multiply_adds_us"])
        print(
            f"{args.isa} {shape:9} flash {flash:3} {kind:4} {n_q:4d} of {n_kv:5d}: {row['us']:9.0f} us, "
            f"floors: bytes {row['floor_bytes_us']:7.0f}, multiply-adds {row['floor_multiply_adds_us']:8.0f} us; "
            f"{floor / row['us']:4.0%}",
            flush=True,
        )
    if args.out:
        record = {
            "kind": "attention",
            "machine": describe(),
            "level": args.isa,
            "threads": args.threads,
            "command": opponents.plain(["python", "-m", "bench.attention", *words]),
            "rows": rows,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
