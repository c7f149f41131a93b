"""Measure what a busy Python thread costs a server that runs in the same process: ``python -m bench.embedded``.

The server's hot path holds no GIL, so a program that embeds it may compute in Python without slowing decoding. One core
is left to the busy thread; what remains is the cost of sharing memory and, if the GIL were needed, of waiting for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import threading
from collections.abc import Sequence

from ggml_rpc import Server
from ggml_rpc.peers import PeerError, prepare_peer

from .models import model
from .run import client_events

IDLE, BUSY = "idle", "busy"
LIMIT = 0.10


class BusyThread:
    """Run pure Python without a pause while switched on."""

    def __init__(self) -> None:
        self._on = threading.Event()
        self.rounds = 0
        threading.Thread(target=self._spin, daemon=True).start()

    def switch(self, on: bool) -> None:
        """Start or stop the work."""
        if on:
            self._on.set()
        else:
            self._on.clear()

    def _spin(self) -> None:
        while self._on.wait():
            for _ in range(1000):
                self.rounds += 1


def run(args: argparse.Namespace) -> float:
    """Decode with the thread idle and busy in turn; return the share of speed that is lost."""
    peer = prepare_peer("8.0")
    path = model(args.model)
    speeds: dict[str, list[float]] = {IDLE: [], BUSY: []}
    busy = BusyThread()
    with Server(devices="CPU", port=0, threads=args.threads) as server:
        runs = json.dumps([{"label": label, "rpc": [server.endpoint]} for label in (IDLE, BUSY)])
        arguments = ["bench", "--model", str(path), "--runs", runs, "--repeats", str(args.repeats)]
        arguments += ["--prefill", "16", "--decode", str(args.decode)]
        for event in client_events(peer, arguments):
            if event["event"] == "speed":
                speeds[event["label"]].append(event["decode_tps"])
                busy.switch(event["label"] == IDLE)  # the other turn begins
    medians = {label: statistics.median(turns) for label, turns in speeds.items()}
    loss = 1 - medians[BUSY] / medians[IDLE]
    print(
        f"decode beside an idle Python thread {medians[IDLE]:.1f} t/s, beside a busy one {medians[BUSY]:.1f} t/s",
        end="",
    )
    print(f" ({busy.rounds} rounds): {100 * loss:.1f} % lost, limit {100 * LIMIT:.0f} %")
    return loss


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.embedded", description=__doc__)
    parser.add_argument("--model", default="gemma")
    parser.add_argument("-t", "--threads", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decode", type=int, default=128)
    try:
        return 0 if run(parser.parse_args(argv)) < LIMIT else 1
    except (PeerError, RuntimeError, OSError) as error:
        print(f"embedded: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
