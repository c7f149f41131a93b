"""Measure several clients at once, and one beside a busy process: ``python -m bench.sessions``.

Stock clients decode on one server of ours and, one alone since it takes no more, on a stock one. The clients are
processes that are stopped and continued, so that the setups (one client alone, all at once, one beside a busy loop)
take turns on the same connections: A B C A B C. Speed is what the clients saw, over rounds of tokens that lie within a
turn.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ggml_rpc.peers import Peer, PeerError, prepare_peer
from ggml_rpc.peers.process import ServerError, ServerProcess, own_server_command, terminable

from . import store
from .figures import OURS, STOCK, Figure
from .machine import describe
from .models import NAMES, model
from .opponents import best_level, stock_server

ALONE, TOGETHER, BESIDE = "one client", "all clients", "one client beside a busy process"
ROUND = 8  # tokens between two reports of a client
LOST_LIMIT, BUSY_LIMIT = 0.15, 0.40
BUSY_LOOP = "while True: pass"


class Process:
    """A child process that runs only while it is let to."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)

    def let(self, run: bool) -> None:
        """Continue or stop it."""
        self.process.send_signal(signal.SIGCONT if run else signal.SIGSTOP)

    def end(self) -> None:
        """Kill it, stopped or not."""
        self.process.kill()
        self.process.wait()


class Client(Process):
    """Decode for ever with the stock client; `rounds` holds when each round began and ended."""

    def __init__(self, peer: Peer, path: Path, endpoint: str) -> None:
        runs = json.dumps([{"label": "", "rpc": [endpoint]}])
        arguments = ["bench", "--model", str(path), "--runs", runs, "--repeats", "1000000"]
        command = peer.driver_command([*arguments, "--prefill", "1", "--decode", str(ROUND)])
        super().__init__(command, stdout=subprocess.PIPE, text=True)
        self.rounds: list[tuple[float, float]] = []
        self.started = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "speed":
                end = time.monotonic()
                self.rounds.append((end - ROUND / event["decode_tps"], end))
                self.started.set()
        self.started.set()

    def wait(self) -> None:
        """Wait for the first round."""
        self.started.wait()
        if not self.rounds:
            raise RuntimeError(f"a stock client ended with status {self.process.wait()}")

    def speed(self, begin: float, end: float) -> float:
        """Return the tokens a second of the rounds between two times."""
        seconds = [b - a for a, b in self.rounds if a >= begin and b <= end]
        return ROUND * len(seconds) / sum(seconds) if seconds else 0.0


@contextmanager
def ended(process: Process) -> Iterator[Process]:
    """Kill the process at the end of the block."""
    try:
        yield process
    finally:
        process.end()


def measure(
    server: ServerProcess, peer: Peer, path: Path, count: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Let the setups take turns on one server with `count` clients; return tokens a second of all clients together."""
    turns: dict[str, list[float]] = {ALONE: [], TOGETHER: [], BESIDE: []}
    if count == 1:
        del turns[TOGETHER]
    with ExitStack() as stack:
        busy = Process([sys.executable, "-c", BUSY_LOOP])
        stack.enter_context(ended(busy))
        busy.let(False)
        clients = []
        for _ in range(count):
            clients.append(Client(peer, path, server.endpoint))
            stack.enter_context(ended(clients[-1]))
            clients[-1].wait()
            clients[-1].let(False)
        for _ in range(args.repeats):
            for name, speeds in turns.items():
                running = clients if name == TOGETHER else clients[:1]
                for client in running:
                    client.let(True)
                busy.let(name == BESIDE)
                begin = time.monotonic()
                time.sleep(args.seconds)
                speed = sum(client.speed(begin, time.monotonic()) for client in running)
                for process in (*running, busy):
                    process.let(False)
                speeds.append(speed)
    return turns


def run(args: argparse.Namespace) -> None:
    """Measure, print and store the record."""
    protocol, stock_command, description = stock_server("auto")
    peer = prepare_peer(protocol)
    own = [*own_server_command(), "--proto", protocol]
    record: dict[str, Any] = {
        "kind": "sessions",
        "machine": describe(),
        "level": best_level(),
        "opponent": description,
        "threads": args.threads,
        "models": {},
        "figures": [],
    }
    labels = [OURS] if args.only_ours else [OURS, STOCK]
    for name in args.models:
        record["models"][name] = {}
        for label in labels:
            with ServerProcess(own if label == OURS else stock_command, ["-t", str(args.threads)]) as server:
                # A stock server takes one client at a time: a second one would wait for the first to leave.
                turns = measure(server, peer, model(name), args.clients if label == OURS else 1, args)
            medians = {setup: statistics.median(values) for setup, values in turns.items()}
            record["models"][name][label] = {"turns": turns, "median": medians}
            if label == OURS:
                record["figures"] += [figure.record() for figure in figures(name, args.clients, turns)]
            line = f"{name:16} {label:5}  1 client {medians[ALONE]:6.1f} t/s"
            for setup, what in ((TOGETHER, f"{args.clients} clients"), (BESIDE, "beside a busy process")):
                if setup in medians:
                    line += f"   {what} {medians[setup]:6.1f} t/s ({medians[setup] / medians[ALONE]:4.2f} of it)"
            print(line, flush=True)
    print(f"wanted of ours: together >= {1 - LOST_LIMIT:.2f} of one, beside a busy process >= {BUSY_LIMIT:.2f} of idle")
    store.save(record, args)


def figures(name: str, clients: int, turns: dict[str, list[float]]) -> list[Figure]:
    """Return what the turns on our server say: all clients, and one beside a busy process, beside one alone."""
    whats = {TOGETHER: f"{clients} clients", BESIDE: "beside a busy process"}
    return [
        Figure(f"{name} decode, {what}", "t/s", True, {OURS: turns[setup], STOCK: turns[ALONE]}, "one client alone")
        for setup, what in whats.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.sessions", description=__doc__)
    parser.add_argument("models", nargs="*", default=("gemma", "tinyllama-Q4_0"), help=f"of {', '.join(NAMES)}")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each setup")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--only-ours", action="store_true", help="leave the stock server out")
    store.add_arguments(parser)
    store.add_record_argument(parser)
    args = parser.parse_args(argv)
    try:
        with terminable():
            run(args)
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"sessions: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
