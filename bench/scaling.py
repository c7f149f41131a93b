"""Measure how speed grows with threads, falls with context and grows with the batch: ``python -m bench.scaling``.

Ours and the opponent's server take turns as in ``bench.run``; each point is a median.

threads   prefill and decode with 1, 2, ... threads of each server, beside what the memory gives so many threads
context   prefill of the last batch and decode, with so many tokens in the cache
batch     tokens a second when so many are decoded at once, from one (a conversation) to 512 (a prompt)
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ggml_rpc.peers import PeerError
from ggml_rpc.peers.process import ServerError

from . import opponents, store
from .clients import Client
from .figures import OURS, STOCK
from .floors import memory_read
from .machine import describe
from .models import NAMES, decode_bytes, model

KINDS = ("threads", "context", "batch")
BATCH = 512  # of a prompt; the most that the client puts into one graph
WARM = 16

Points = dict[str, list[float | None]]  # median, low, high; None where there is nothing to measure
Speeds = dict[str, dict[str, list[float]]]  # what, label, turns


@contextmanager
def opened(pair: opponents.Pair, args: argparse.Namespace, n_ctx: int) -> Iterator[dict[str, Client]]:
    """Provide a client of each server, with a context and its first graphs behind it."""
    commands = pair.clients(model(args.model), n_ctx, BATCH, args.flash)
    with ExitStack() as stack:
        clients = {label: stack.enter_context(Client(command)) for label, command in commands.items()}
        for client in clients.values():
            client.open()
            client.decode(WARM)
            client.decode(1)
            client.clear()
        yield clients


def by_threads(args: argparse.Namespace) -> dict[str, Any]:
    """Measure prefill and decode with each number of threads."""
    speeds: dict[str, dict[str, Points]] = {}
    weights = decode_bytes(model(args.model))
    floor = []
    for threads in args.threads:
        turns: Speeds = {what: {OURS: [], STOCK: []} for what in ("prefill", "decode")}
        with opponents.serving(args, threads) as pair, opened(pair, args, args.prefill + args.decode + 32) as clients:
            rates = []
            for _ in range(args.repeats):
                rates.append(memory_read(threads))
                for label, client in clients.items():
                    client.clear()
                    turns["prefill"][label].append(args.prefill / client.fill(args.prefill, BATCH))
                    turns["decode"][label].append(args.decode / client.decode(1, args.decode))
        floor.append(max(rates) / weights)
        add(speeds, turns, f"threads {threads}")
    return {"x": args.threads, "speeds": speeds, "decode_floor_tps": floor}


def by_context(pair: opponents.Pair, args: argparse.Namespace) -> dict[str, Any]:
    """Measure with more and more tokens in the cache; what decode adds between two points is part of the next."""
    speeds: dict[str, dict[str, Points]] = {}
    room = args.repeats * args.decode
    with opened(pair, args, max(args.contexts) + room + BATCH) as clients:
        past = 0
        for depth in sorted(args.contexts):
            turns: Speeds = {what: {OURS: [], STOCK: []} for what in ("prefill", "decode")}
            for label, client in clients.items():
                last = min(BATCH, depth - past)
                if last > 0:
                    client.fill(depth - past - last, BATCH)
                    turns["prefill"][label].append(last / client.decode(last))
            for _ in range(args.repeats):
                for label, client in clients.items():
                    turns["decode"][label].append(args.decode / client.decode(1, args.decode))
            past = max(past, depth) + room
            add(speeds, turns, f"context {depth}")
    return {"x": sorted(args.contexts), "speeds": speeds}


def by_batch(pair: opponents.Pair, args: argparse.Namespace) -> dict[str, Any]:
    """Measure tokens a second by how many are decoded at once; small batches several times, for a steadier figure."""
    speeds: dict[str, dict[str, Points]] = {}
    with opened(pair, args, BATCH + 32) as clients:
        for batch in args.batches:
            count = max(1, args.decode // batch)
            turns: Speeds = {"batch": {OURS: [], STOCK: []}}
            for client in clients.values():  # the first graph of this shape
                client.clear()
                client.decode(batch)
            for _ in range(args.repeats):
                for label, client in clients.items():
                    client.clear()
                    turns["batch"][label].append(batch * count / client.decode(batch, count))
            add(speeds, turns, f"batch {batch}")
    return {"x": args.batches, "speeds": speeds}


def add(speeds: dict[str, dict[str, Points]], turns: Speeds, point: str) -> None:
    """Put the medians of a point's turns at the end of their curves, and print them."""
    cells = []
    for what, labels in turns.items():
        for label, values in labels.items():
            curve = speeds.setdefault(what, {}).setdefault(label, {"median": [], "low": [], "high": []})
            for name, choose in (("median", statistics.median), ("low", min), ("high", max)):
                curve[name].append(choose(values) if values else None)
        ours, stock = (speeds[what][label]["median"][-1] for label in (OURS, STOCK))
        if ours is not None and stock is not None:
            cells.append(f"{what} {ours:8.1f} {stock:8.1f} t/s {ours / stock:6.2f}x")
    print(f"{point:16} " + "   ".join(cells), flush=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the options ask for and return the record."""
    series: dict[str, Any] = {}
    threads = max(args.threads)
    with opponents.serving(args, threads) as pair:
        level, description = pair.level, pair.opponent.description
        if "context" in args.what:
            series["context"] = by_context(pair, args)
        if "batch" in args.what:
            series["batch"] = by_batch(pair, args)
    if "threads" in args.what:
        series["threads"] = by_threads(args)
    return {
        "kind": "scaling",
        "machine": describe(),
        "level": level,
        "opponent": description,
        "model": args.model,
        "threads": threads,
        "prefill": args.prefill,
        "decode": args.decode,
        "repeats": args.repeats,
        "command": args.command,
        "series": series,
    }


def numbers(text: str) -> list[int]:
    """Return the positive numbers (or 0) of a list with commas."""
    values = [int(word) for word in text.split(",")]
    if not values or min(values) < 0:
        raise ValueError(text)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"of {', '.join(KINDS)}; all")
    parser.add_argument("--model", default="tinyllama-Q4_K_M", help=f"of {', '.join(NAMES)}, or a GGUF file")
    opponents.add_arguments(parser)
    parser.add_argument("--threads", type=numbers, default=list(range(1, cores + 1)), help="1,2,...; else the most")
    parser.add_argument("--contexts", type=numbers, default=[0, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prefill", type=int, default=256, help="tokens, with each number of threads")
    parser.add_argument("--decode", type=int, default=32, help="tokens at each point")
    store.add_arguments(parser)
    args = parser.parse_args(words)
    args.what = args.what or list(KINDS)
    if not set(args.what) <= set(KINDS) or max(args.batches) > BATCH or min(*args.batches, *args.threads) < 1:
        parser.error(f"kinds are {', '.join(KINDS)}; batches go from 1 to {BATCH}, threads from 1")
    args.command = opponents.plain(["python", "-m", "bench.scaling", *words])
    try:
        record = run(args)
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    store.save(record, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
