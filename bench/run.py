"""Measure our server beside a stock one, driven by the same stock client, turn by turn: ``python -m bench.run``.

Every figure is the median of five turns A B A B ...; compare ratios, since a shared machine drifts. The opponent is the
native build of ``bench.native`` (protocol 7.0) where it exists, else the stock wheel (8.0, an AVX2 build).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggml_rpc.peers import Peer, PeerError, prepare_peer
from ggml_rpc.peers.process import ServerError, ServerProcess, own_server_command, terminable

from . import native
from .machine import describe, memory_read
from .models import NAMES, model
from .wire import WireClient

OURS, STOCK = "ours", "stock"
DEFAULT_MODELS = ("gemma", "tinyllama-Q4_0", "tinyllama-Q4_K_M")


@dataclass
class Figure:
    """Collect the turns of one measurement on both servers.

    Attributes
    ----------
    name, unit : str
        What is measured and in what.
    higher_is_better : bool
        Sense of the ratio: above 1 always means that ours is better.
    turns : dict
        Values by label, in the order in which they were measured.
    """

    name: str
    unit: str
    higher_is_better: bool
    turns: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], STOCK: []})

    def median(self, label: str) -> float:
        """Return the median of one server's turns."""
        return statistics.median(self.turns[label])

    def ratio(self) -> float:
        """Return how much better ours is: 2 means twice as fast."""
        ratio = self.median(OURS) / self.median(STOCK)
        return ratio if self.higher_is_better else 1 / ratio

    def record(self) -> dict[str, Any]:
        """Return what goes into the JSON file."""
        medians = {label: self.median(label) for label in self.turns}
        return {"name": self.name, "unit": self.unit, "median": medians, "ratio": self.ratio(), "turns": self.turns}


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


def measure_model(
    name: str, peer: Peer, servers: dict[str, ServerProcess], args: argparse.Namespace, floor: float
) -> tuple[list[Figure], dict[str, float]]:
    """Time loading, prefill and decode of one model; return the figures and the model's floors."""
    path = model(name)
    load = Figure(f"{name} load", "s", higher_is_better=False)
    prefill = Figure(f"{name} prefill {args.prefill}", "t/s", higher_is_better=True)
    decode = Figure(f"{name} decode {args.decode}", "t/s", higher_is_better=True)
    runs = [{"label": label, "rpc": [server.endpoint]} for label, server in servers.items()]
    arguments = ["bench", "--model", str(path), "--runs", json.dumps(runs), "--flash", args.flash]
    arguments += ["--repeats", str(args.repeats), "--loads", str(args.repeats)]
    arguments += ["--prefill", str(args.prefill), "--decode", str(args.decode)]
    for event in client_events(peer, arguments):
        if event["event"] == "load":
            load.turns[event["label"]].append(event["seconds"])
        elif event["event"] == "speed":
            prefill.turns[event["label"]].append(event["prefill_tps"])
            decode.turns[event["label"]].append(event["decode_tps"])
    size = path.stat().st_size
    floors = {"bytes": float(size), "decode_floor_tps": floor / size}
    return [load, prefill, decode], floors


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as an aligned table."""
    lines = [f"{'':34} {'unit':>5} {'ours':>10} {'stock':>10} {'ratio':>7}"]
    for figure in figures:
        medians = f"{figure.median(OURS):10.2f} {figure.median(STOCK):10.2f}"
        lines.append(f"{figure.name:34} {figure.unit:>5} {medians} {figure.ratio():6.2f}x")
    return "\n".join(lines)


def opponent(choice: str) -> tuple[str, list[str], str]:
    """Return the opponent's protocol, its argv prefix and a description."""
    folder = native.find_native()
    if choice == "native" and folder is None:
        raise PeerError("no native stock server here: build it with `python -m bench.native`")
    if folder is not None and choice != "wheel":
        command = prepare_peer(native.PROTOCOL).driver_command(["serve", "--libraries", str(folder)])
        return native.PROTOCOL, command, f"llama.cpp of llama-cpp-python {native.SOURCE.version}, native build"
    peer = prepare_peer("8.0")
    return "8.0", peer.driver_command(["serve"]), f"llama-cpp-py-sync {peer.version}, AVX2 build"


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the JSON file."""
    protocol, stock_command, description = opponent(args.opponent)
    peer = prepare_peer(protocol)
    own = shlex.split(args.own_command) if args.own_command else [*own_server_command(), "--proto", protocol]
    machine = describe()
    floor = {count: memory_read(count) for count in {1, machine["cores"]}}
    options = ["-t", str(args.threads)]
    models: dict[str, dict[str, float]] = {}
    with terminable(), ExitStack() as stack:
        servers = {
            label: stack.enter_context(ServerProcess(command, options))
            for label, command in ((OURS, own), (STOCK, stock_command))
        }
        figures = measure_wire(servers, args.repeats)
        for name in args.models:
            new, models[name] = measure_model(name, peer, servers, args, floor[machine["cores"]])
            figures += new
            print(table(new), flush=True)
        resident = {label: server.rss_bytes() for label, server in servers.items()}
    read = ", ".join(f"{count} core(s) {rate / 1e9:.1f} GB/s" for count, rate in sorted(floor.items()))
    print(f"\n{machine['processor']} ({' '.join(machine['isa'])}), {args.threads} threads, {machine['date']}")
    print(f"opponent: {description}, protocol {protocol}; memory read: {read}\n")
    print(table(figures))
    for name, floors in models.items():
        print(f"{name}: {floors['bytes'] / 1e9:.2f} GB, decode at memory speed {floors['decode_floor_tps']:.1f} t/s")
    record = {
        "machine": machine,
        "opponent": description,
        "protocol": protocol,
        "threads": args.threads,
        "memory_read_bytes_per_s": {str(count): rate for count, rate in floor.items()},
        "models": models,
        "resident_bytes_after": resident,
        "figures": [figure.record() for figure in figures],
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("models", nargs="*", default=DEFAULT_MODELS, help=f"of {', '.join(NAMES)}, or GGUF files")
    parser.add_argument("--opponent", choices=("auto", "native", "wheel"), default="auto")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--own-command", default="", help="argv prefix of the server under test, in place of ours")
    args = parser.parse_args(argv)
    try:
        run(args)
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
