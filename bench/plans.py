"""Measure what stands between a graph's last byte and its kernels, and the thread pool: ``python -m bench.plans``.

Recorded graphs of stock clients are read, checked and compiled; plans of tiny nodes show what the executor adds to the
kernels. Nothing here needs a peer or a model. Times are the median of many calls on a machine that should be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ggml_rpc.devices.cpu import CpuPool
from ggml_rpc.graph._graph import check_graph
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.wire._codec import Codec
from tests.graph.recorded import CAPTURES, Recorded, graphs
from tests.replay.replayer import load
from tests.support.device import Bench
from tests.support.wiretensor import Tensor

from .machine import describe

# One decode step of each: the last graph of the conversation is that of a single token.
RECORDED = ("8.0.0/llama-fa1", "8.0.0/gemma3-fa1", "8.0.0/qwen3next-fa0", "ik-3.5.2/llama-fa1", "ik-3.5.2/gemma3-fa1")
NODES_OF_A_MODEL = 491  # of a model of usual depth; the recorded ones have few layers, so their graph is repeated
TINY_NODES = 1000
MICRO = 1e6


def median(call: Callable[[], object], seconds: float = 0.4, pause: float = 0.0) -> float:
    """Return the median time of a call in microseconds, called again and again for about `seconds`."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * MICRO


def split(dialect: Dialect, payload: bytes) -> tuple[bytes, list[int], list[bytearray]]:
    """Return a graph's head, the ids of its nodes and its tensor records."""
    head = len(payload) - len(payload) % 4  # found below: the head is what the records leave
    for at in range(0, 17, 4):
        (n,) = struct.unpack_from("<I", payload, at)
        end = at + 4 + 8 * n
        if end + 4 > len(payload):
            continue
        (m,) = struct.unpack_from("<I", payload, end)
        if end + 4 + m * dialect.record.size == len(payload):
            head = at
            break
    ids = list(struct.unpack_from(f"<{n}Q", payload, head + 4))
    size = dialect.record.size
    records = [bytearray(payload[end + 4 + i * size : end + 4 + (i + 1) * size]) for i in range(m)]
    return payload[:head], ids, records


def join(head: bytes, ids: Sequence[int], records: Sequence[bytes]) -> bytes:
    """Return the payload of the parts."""
    return b"".join(
        [head, struct.pack(f"<I{len(ids)}Q", len(ids), *ids), struct.pack("<I", len(records)), *map(bytes, records)]
    )


def repeated(g: Recorded, nodes: int) -> Recorded:
    """Return a graph that does the recorded one's work again and again, until it has so many nodes."""
    head, ids, records = split(g.dialect, g.payload)
    at = g.dialect.record.offsets
    out_ids: list[int] = []
    out: list[bytes] = []
    while len(out_ids) < nodes:
        shift = len(out) << 40
        for record in records:
            copy = bytearray(record)
            places = [at["id"], at["view_src"], *(at["src"] + 8 * i for i in range(g.dialect.record.max_src))]
            for place in places:
                (value,) = struct.unpack_from("<Q", copy, place)
                struct.pack_into("<Q", copy, place, value + shift if value else 0)
            out.append(bytes(copy))
        out_ids += [i + shift for i in ids]
    return Recorded(f"{g.name} repeated", g.dialect, join(head, out_ids, out), g.buffers, g.n_devices)


def placed(g: Recorded, device: Any) -> tuple[bytes, list[Any]]:
    """Return the payload over real memory of a device, zeroed, and its buffers."""
    head, ids, records = split(g.dialect, g.payload)
    at = g.dialect.record.offsets
    real = {handle: (base, device.alloc(size)) for handle, base, size, _ in g.buffers}
    for _, buffer in real.values():
        np.frombuffer(buffer, np.uint8)[:] = 0
    for record in records:
        (handle,) = struct.unpack_from("<Q", record, at["buffer"])
        if handle not in real:
            continue
        base, buffer = real[handle]
        (data,) = struct.unpack_from("<Q", record, at["data"])
        struct.pack_into("<Q", record, at["buffer"], buffer.handle)
        struct.pack_into("<Q", record, at["data"], data - base + buffer.base)
    return join(head, ids, records), [buffer for _, buffer in real.values()]


def measure_recorded(threads: int) -> list[dict[str, Any]]:
    """Time parsing, compiling and running recorded graphs, alone and repeated to a usual model's size."""
    rows = []
    device = CpuPool(threads).device()
    for name in RECORDED:
        last = [g for g in graphs(load(CAPTURES / f"{name}.json")) if g.n_devices == 1][-1]
        for g in (last, repeated(last, NODES_OF_A_MODEL)):
            codec = Codec(g.dialect)
            payload, buffers = placed(g, device)
            listed = [(b.handle, b.base, b.size, 0) for b in buffers]
            plan = device.compile(codec, payload, buffers)
            parse = median(lambda p=payload, c=codec, b=listed: check_graph(c, p, b))
            both = median(lambda p=payload, c=codec, b=buffers: device.compile(c, p, b))
            rows.append(
                {
                    "graph": g.name,
                    "bytes": len(payload),
                    "nodes": len(check_graph(codec, payload, listed).nodes),
                    "parse_us": parse,
                    "compile_us": both - parse,
                    "both_us": both,
                    "run_us": median(plan.run),
                }
            )
    return rows


def chain(bench: Bench, elements: int, count: int) -> list[Tensor]:
    """Return nodes that each need the one before."""
    t = bench.put(np.zeros(elements, np.float32))
    one = bench.put(np.zeros(elements, np.float32))
    nodes = []
    for _ in range(count):
        t = bench.node("ADD", "F32", (elements,), [t, one], out=t if nodes else None)
        nodes.append(t)
    return nodes


def measure_pool(threads: int) -> dict[str, float]:
    """Time plans of many tiny nodes, barriers and wake-ups."""
    figures: dict[str, float] = {}
    shared_elements = 16384  # enough work to be shared by all threads, with a barrier for each node
    per_step = {}
    for count in sorted({1, threads}):
        bench = Bench(CpuPool(count).device(), size=256 << 20)
        one = bench.compile(chain(bench, 16, 1)).run
        many = bench.compile(chain(bench, 16, TINY_NODES)).run
        shared = bench.compile(chain(bench, shared_elements, TINY_NODES)).run
        one_us, many_us, shared_us = median(one), median(many), median(shared)
        figures[f"run of 1 tiny node, {count} thread(s), us"] = one_us
        figures[f"run of 1 tiny node after 20 ms of sleep, {count} thread(s), us"] = median(one, pause=0.02)
        figures[f"run of {TINY_NODES} tiny nodes, {count} thread(s), us"] = many_us
        figures[f"each further tiny node, {count} thread(s), us"] = (many_us - one_us) / (TINY_NODES - 1)
        figures[f"node of {shared_elements} elements, {count} thread(s), us"] = shared_us / TINY_NODES
        per_step[count] = shared_us / TINY_NODES
    if threads > 1:
        figures["barrier, us"] = per_step[threads] - per_step[1] / threads
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--skip", choices=("recorded", "pool"), default="", help="leave one half out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    record: dict[str, Any] = {"machine": describe(), "threads": args.threads}
    if args.skip != "recorded":
        record["recorded"] = measure_recorded(args.threads)
        print(f"{'graph':34} {'bytes':>8} {'nodes':>6} {'parse':>8} {'compile':>8} {'both':>8} {'run us':>8}")
        for r in record["recorded"]:
            times = f"{r['parse_us']:8.1f} {r['compile_us']:8.1f} {r['both_us']:8.1f} {r['run_us']:8.1f}"
            print(f"{r['graph']:34} {r['bytes']:8} {r['nodes']:6} {times}")
    if args.skip != "pool":
        record["pool"] = measure_pool(args.threads)
        for name, value in record["pool"].items():
            print(f"{name:62} {value:9.2f}")
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
