"""Measure how long a model takes to load beside the floors of the same client, turn by turn: ``python -m bench.load``.

Cold: a stock client into a sink that throws all away (``bench.sink``), into our server, into a stock one. Warm: into a
sink that says it has every tensor, which is the client's own work, and into servers that keep tensors (``-c``) and have
them. Then our own client into our server, cold and warm. And hashing by itself: the byte loop that stock clients run,
and ours. Medians of turns A B A B ...; a first turn is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.peers import PeerError, prepare_peer
from ggml_rpc.peers.process import ServerError, ServerProcess, module_command, own_server_command, terminable
from ggml_rpc.spec.limits import HASH_THRESHOLD_BYTES
from ggml_rpc.wire._hash import fnv1a_64, fnv1a_64_many

from . import store
from .clients import Client
from .figures import OURS, STOCK, Figure
from .machine import describe
from .models import NAMES, model
from .opponents import best_level, opponent
from .ready import hold_memory, read_once

# What is sent to, and loaded by, the server in question: its floor, ours, stock's.
CASES = (
    ("cold", ("sink", "ours", "stock")),
    ("warm", ("known", "ours -c", "stock -c")),
)
FLOORS = {"sink": "a sink that discards what it is sent", "known": "a sink that says it has every tensor"}


def get_ready(path: Path, folder: Path) -> None:
    """Bring the file, and those that servers keep in a folder, into the system's cache, and memory for the model.

    Files whose names begin with a dot are still being written, and get other names when they are whole.
    """
    kept = (found for found in folder.rglob("[!.]*") if found.is_file())
    for file in (path, *kept):
        read_once(file)
    hold_memory(2 * path.stat().st_size)


def stock_loads(
    protocol: str, path: Path, folder: Path, servers: dict[str, ServerProcess], repeats: int
) -> dict[str, list[float]]:
    """Return the seconds of each load by a stock client, turn by turn, the first not counted.

    Parameters
    ----------
    protocol : str
        The client's.
    path : Path
        The model.
    folder : Path
        Where the servers keep tensors.
    servers : dict
        By label.
    repeats : int
        Turns that count.
    """
    turns: dict[str, list[float]] = {label: [] for label in servers}
    peer = prepare_peer(protocol)
    with ExitStack() as stack:
        clients = {}
        for label, server in servers.items():
            arguments = ["timing", "--model", str(path), "--rpc", server.endpoint, "--n-ctx", "512"]
            clients[label] = stack.enter_context(Client(peer.driver_command(arguments)))
        for repeat in range(repeats + 1):
            for label, client in clients.items():
                get_ready(path, folder)
                seconds = client.load()
                if repeat > 0:
                    turns[label].append(seconds)
    return turns


def own_loads(path: Path, folder: Path, servers: dict[str, ServerProcess], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each load by our client, all weights on the server."""
    turns: dict[str, list[float]] = {f"own client, {label}": [] for label in servers}
    for repeat in range(repeats + 1):
        for label, server in servers.items():
            get_ready(path, folder)
            start = time.perf_counter()
            with (
                open_devices([server.endpoint], threads=1) as devices,
                Model.open(path, devices, settings=ContextSettings(512, 512, 512)),
            ):
                seconds = time.perf_counter() - start
            if repeat > 0:
                turns[f"own client, {label}"].append(seconds)
    return turns


def hashing(path: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds that hashing takes of the tensors that clients ask for by hash."""
    ways: dict[str, Callable[[list[Any]], object]] = {
        "hash, byte loop": lambda tensors: [fnv1a_64(data, level="bytes") for data in tensors],
        "hash": lambda tensors: [fnv1a_64(data) for data in tensors],
        "hash, 2 threads": lambda tensors: fnv1a_64_many(tensors, threads=2),
    }
    turns: dict[str, list[float]] = {name: [] for name in ways}
    with GgufFile.open(path) as file:
        for _ in range(repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way([t.data for t in file.tensors.values() if t.nbytes > HASH_THRESHOLD_BYTES])
                turns[name].append(time.perf_counter() - start)
    return turns


def start_servers(
    stack: ExitStack, protocol: str, stock_command: Sequence[str], folder: Path, threads: int
) -> dict[str, Any]:
    """Start what models are loaded into, by label; what they keep lies in the folder."""
    own = [*own_server_command(), "--proto", protocol]
    sink = module_command("bench.sink")
    options = ["-t", str(threads)]
    plans: dict[str, tuple[Sequence[str], list[str]]] = {
        "sink": (sink, ["--proto", protocol]),
        "ours": (own, options),
        "stock": (stock_command, options),
        "known": (sink, ["--proto", protocol, "--known"]),
        "ours -c": (own, [*options, "-c"]),
        "stock -c": (stock_command, [*options, "-c"]),
    }
    servers = {}
    for label, (command, arguments) in plans.items():
        environment = {"LLAMA_CACHE": str(folder / label), "OMP_WAIT_POLICY": "passive"}
        servers[label] = stack.enter_context(ServerProcess(command, arguments, environment=environment))
    return servers


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and store the record."""
    path = model(args.model)
    turns: dict[str, list[float]] = {}
    with terminable(), ExitStack() as stack:
        other = stack.enter_context(opponent(args.opponent, best_level()))
        protocol, description = other.protocol, other.description
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ggml-load-")))
        servers = start_servers(stack, protocol, other.server, folder, args.threads)
        for case, labels in CASES:
            if case in args.cases:
                chosen = {label: servers[label] for label in labels}
                turns |= stock_loads(protocol, path, folder, chosen, args.repeats)
        if "own" in args.cases:
            turns |= own_loads(path, folder, {label: servers[label] for label in ("ours", "ours -c")}, args.repeats)
    if "hash" in args.cases:
        turns |= hashing(path, args.repeats)
    medians = {label: statistics.median(seconds) for label, seconds in turns.items()}
    machine = describe()
    size = path.stat().st_size
    print(f"{machine['processor']}, {args.threads} threads, {machine['date']}; {path.name}, {size / 1e9:.2f} GB")
    print(f"stock: {description}, protocol {protocol}")
    for label, median in medians.items():
        floor = next((labels[0] for _, labels in CASES if label in labels), label)
        ratio = f"{median / medians[floor]:6.2f} of {floor}" if floor != label else ""
        print(f"{label:24} {median:7.3f} s {size / median / 1e9:6.2f} GB/s {ratio}")
    record = {
        "kind": "load",
        "machine": machine,
        "level": best_level(),
        "threads": args.threads,
        "opponent": description,
        "model": path.name,
        "bytes": size,
        "figures": [figure.record() for figure in figures(args.model, turns)],
        "turns_s": turns,
    }
    store.save(record, args)


def figures(name: str, turns: dict[str, list[float]]) -> list[Figure]:
    """Return what the turns say of our server: beside the floor of the same client, and beside the stock server."""
    found = []
    for case, (floor, ours, stock) in CASES:
        for other, against in ((floor, FLOORS[floor]), (stock, "")):
            if ours in turns and other in turns:
                values = {OURS: turns[ours], STOCK: turns[other]}
                found.append(Figure(f"{name} load, {case}", "s", False, values, against))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    parser.add_argument("model", nargs="?", default="tinyllama-Q8_0", help=f"of {', '.join(NAMES)}, or a GGUF file")
    parser.add_argument("--opponent", choices=("auto", "native", "wheel"), default="auto")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default="cold,warm,own,hash", help="of cold, warm, own, hash, separated by commas")
    store.add_arguments(parser)
    store.add_record_argument(parser)
    args = parser.parse_args(argv)
    args.cases = args.cases.split(",")
    try:
        run(args)
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
