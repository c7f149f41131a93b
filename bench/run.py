"""Measure our server beside a stock one, driven by the same stock client, turn by turn: ``python -m bench.run``.

Every figure is the median of five turns A B A B ...; compare ratios, since a shared machine drifts. The opponent is the
native build of ``bench.native`` (protocol 7.0) where it exists, else the stock wheel (8.0, an AVX2 build), or
ik_llama.cpp with its own client. What the memory allows is measured right before and after
each of our turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from ggml_rpc.peers import Peer, PeerError
from ggml_rpc.peers.process import ServerError, ServerProcess

from . import opponents, store
from .clients import Client
from .figures import OURS, Figure, plain_table, report
from .floors import memory_read
from .machine import describe
from .models import NAMES, decode_bytes, model
from .ready import hold_memory, read_once
from .wire import WireClient

DEFAULT_MODELS = ("tinyllama-Q4_0", "tinyllama-Q4_K_M", "tinyllama-Q8_0", "tinyllama-F16", "gemma")


def measure_wire(servers: dict[str, ServerProcess], repeats: int) -> list[Figure]:
    """Time round trips and transfers."""
    trip = Figure("round trip", "us", higher_is_better=False)
    up = Figure("SET_TENSOR", "GB/s", higher_is_better=True)
    down = Figure("GET_TENSOR", "GB/s", higher_is_better=True)
    for _ in range(repeats):
        for label, server in servers.items():
            with WireClient(server.endpoint) as client:
                trip.turns[label].append(client.round_trip() * 1e6)
                set_rate, get_rate = client.transfer()
            up.turns[label].append(set_rate / 1e9)
            down.turns[label].append(get_rate / 1e9)
    return [trip, up, down]


def client_events(peer: Peer, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run the stock client and yield what it reports."""
    command = peer.driver_command(arguments)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode != 0:
        raise RuntimeError(f"the stock client ended with status {process.returncode}")


def measure_model(name: str, pair: opponents.Pair, args: argparse.Namespace) -> tuple[list[Figure], dict[str, float]]:
    """Time loading, prefill and decode of one model; return the figures, and what the memory allows."""
    path = model(name)
    read_once(path)
    load = Figure(f"{name} load", "s", higher_is_better=False)
    prefill = Figure(f"{name} prefill {args.prefill}", "t/s", higher_is_better=True)
    decode = Figure(f"{name} decode {args.decode}", "t/s", higher_is_better=True)
    rates, shares = [], []
    weights = decode_bytes(path)
    commands = pair.clients(path, args.prefill + args.decode + 32, args.prefill, args.flash)
    with ExitStack() as stack:
        clients = {label: stack.enter_context(Client(command)) for label, command in commands.items()}
        for _ in range(args.repeats):
            for label, client in clients.items():
                hold_memory(2 * path.stat().st_size)
                load.turns[label].append(client.load())
        for client in clients.values():  # first graphs, first touch of the cache
            client.open()
            client.decode(args.prefill)
            client.decode(1)
        for _ in range(args.repeats):
            for label, client in clients.items():
                client.clear()
                prefill.turns[label].append(args.prefill / client.decode(args.prefill))
                before = memory_read(args.threads) if label == OURS else 0.0
                decode.turns[label].append(args.decode / client.decode(1, args.decode))
                if label == OURS:
                    # What a machine shared with others has to give changes by half within seconds.
                    rates.append(statistics.harmonic_mean([before, memory_read(args.threads)]))
                    shares.append(decode.turns[OURS][-1] * weights / rates[-1])
    rate = statistics.median(rates)
    floor = {
        "file_bytes": path.stat().st_size,
        "decode_bytes": weights,
        "memory_read_bytes_per_s": rate,
        "decode_floor_tps": rate / weights,
        "decode_share": statistics.median(shares),
    }
    return [load, prefill, decode], floor


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the options ask for and return the record."""
    models: dict[str, dict[str, float]] = {}
    figures: list[Figure] = []
    with opponents.serving(args, args.threads) as pair:
        if not args.no_wire and pair.opponent.name != "ik":  # its wire format is another
            figures += measure_wire(pair.servers, args.repeats)
        for name in args.models:
            new, models[name] = measure_model(name, pair, args)
            figures += new
            print(plain_table(new), flush=True)
        resident = {label: server.rss_bytes() for label, server in pair.servers.items()}
        commands = pair.commands()
    return {
        "machine": describe(),
        "level": pair.level,
        "opponent": pair.opponent.description,
        "opponent_kind": pair.opponent.name,
        "protocol": pair.opponent.protocol,
        "threads": args.threads,
        "prefill": args.prefill,
        "decode": args.decode,
        "repeats": args.repeats,
        "command": args.command,
        "servers": commands,
        "models": models,
        "resident_bytes_after": resident,
        "figures": [figure.record() for figure in figures],
    }


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables and store the record."""
    record = measure(args)
    print(f"\n{report(record)}")
    store.save(record, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(NAMES)}, or GGUF files; all of the table")
    opponents.add_arguments(parser)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--no-wire", action="store_true", help="leave out round trips and transfers")
    store.add_arguments(parser)
    store.add_record_argument(parser)
    args = parser.parse_args(words)
    args.models = args.models or list(DEFAULT_MODELS)
    args.command = opponents.plain(["python", "-m", "bench.run", *words])
    try:
        run(args)
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
