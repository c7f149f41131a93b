"""Check our client's accuracy on running text against the stock client's: ``python -m bench.client_accuracy``.

Reads 20,000 tokens with Gemma 3 270M, window by window, through our client on two of our servers, on a stock server of
protocol 8.0, on a stock server of 7.0 beside one of ours, and on this machine alone. The reference is the stock client
on a stock server with flash attention. Each passes if the mean logarithm of the perplexity ratio is within three paired
standard errors of zero, and the mean divergence of the next-token distributions is not above that between the stock
client's own flash attention on and off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import RpcError
from ggml_rpc.llm.context import Context
from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.peers import Peer, PeerError, prepare_model, prepare_peer
from ggml_rpc.peers.driver.scoring import Reference
from ggml_rpc.peers.process import PATIENT, ServerError, ServerProcess, own_server_command, terminable

from .accuracy import CHARACTERS_PER_TOKEN, Verdict, documentation, judge
from .machine import describe
from .run import client_events

REFERENCE = "stock-on"
STOCK = {REFERENCE: "on", "stock-off": "off"}
# Servers by name; stock ones serve one client at a time, so the reference has one of its own.
SERVERS = {"reference": "8.0", "ours-0": None, "ours-1": None, "stock-8": "8.0", "stock-7": "7.0"}
OURS = {
    "two-of-ours": ("ours-0", "ours-1"),
    "stock-8.0": ("stock-8",),
    "stock-7.0-and-ours": ("stock-7", "ours-0"),
    "local": (),
}

Row = NDArray[np.float32]


class StockClient:
    """Drive a stock client in its own process; its logits cross in files.

    Parameters
    ----------
    peer : Peer
        The stock client.
    arguments : sequence of str
        Of the driver's ``dialogue``.
    folder : pathlib.Path
        For the files; best in memory, 1 MB a token.
    """

    def __init__(self, peer: Peer, arguments: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            peer.driver_command(["dialogue", *arguments]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._event("ready")
        except RuntimeError:
            self.close()
            raise

    def _event(self, name: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        event: dict[str, Any] = json.loads(line) if line else {}
        if event.get("event") != name:
            raise RuntimeError("the stock client ended early")
        return event

    def decode(self, label: str, tokens: Sequence[int], *, clear: bool) -> Row:
        """Return the logits of each token, shape ``(tokens, n_vocab)``."""
        out = self._folder / f"{label}.npy"
        assert self._process.stdin is not None
        request = {"label": label, "clear": clear, "tokens": [int(token) for token in tokens], "out": str(out)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        self._event("rows")
        rows: Row = np.load(out, mmap_mode="r")
        out.unlink()  # the memory goes with the mapping
        return rows

    def close(self) -> None:
        """End the client and free its memory on the server."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> StockClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Scores:
    """Score all runs batch by batch, beside the work of the next run; the first run is the reference."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.nll: dict[str, list[NDArray[np.float64]]] = {label: [] for label in labels}
        self.kl: dict[str, list[NDArray[np.float64]]] = {label: [] for label in labels}
        self.seconds = dict.fromkeys(labels, 0.0)
        self._pool = ThreadPoolExecutor(1)
        self._pending: list[Future[None]] = []
        self._batch = Reference(np.zeros(0, np.int64))

    def begin(self, targets: NDArray[np.int64]) -> None:
        """Wait for the batch before, and begin one whose next tokens are `targets`."""
        for pending in self._pending:
            pending.result()
        self._pending.clear()
        self._batch = Reference(targets)

    def add(self, label: str, rows: Row, seconds: float) -> None:
        """Take the logits of one run and the time that they took."""
        self.seconds[label] += seconds
        self._pending.append(self._pool.submit(self._score, self._batch, label, rows))

    def _score(self, batch: Reference, label: str, rows: Row) -> None:
        losses, divergences = batch.score(rows)
        self.nll[label].append(losses)
        self.kl[label].append(divergences)

    def verdicts(self) -> dict[str, Verdict]:
        """Return what stands so far, label by label."""
        self.begin(np.zeros(0, np.int64))
        reference = np.concatenate(self.nll[REFERENCE])
        return {
            label: judge(np.concatenate(parts), reference, np.concatenate(self.kl[label]))
            for label, parts in self.nll.items()
        }


def _open_contexts(args: argparse.Namespace, endpoints: dict[str, str], path: Path, stack: ExitStack) -> list[Context]:
    settings = ContextSettings(n_ctx=args.n_ctx, n_batch=args.n_batch, n_ubatch=args.n_batch, flash_attn="on")
    contexts = []
    for label in args.runs:
        devices = stack.enter_context(
            open_devices([endpoints[name] for name in OURS[label]], threads=args.threads, timeout=600)
        )
        # In proportion to free memory, the output alone would weigh more than all layers: both are to have some.
        split = [1.0] * len(devices.remote) or None
        model = stack.enter_context(Model.open(path, devices, settings=settings, tensor_split=split))
        contexts.append(stack.enter_context(model.context()))
        layers = ", ".join(f"{use.room.name} {use.total >> 20} MiB" for use in model.usage())
        print(f"{label}: {', '.join(f'{s.endpoint} {s.dialect.name}' for s in devices.servers) or 'local'}; {layers}")
    return contexts


def _measure(args: argparse.Namespace, peer: Peer, path: Path, stack: ExitStack) -> Scores:
    """Start everything, feed all runs the same batches and return their scores."""
    shared = Path("/dev/shm")  # noqa: S108 - rows of 1 MB a token need no disk
    where = shared if shared.is_dir() and os.access(shared, os.W_OK) else None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where)))
    (folder / "text.txt").write_text(documentation(args.tokens * CHARACTERS_PER_TOKEN))
    needed = ["reference", *dict.fromkeys(name for label in args.runs for name in OURS[label])]
    endpoints = {}
    for name in needed:
        protocol = SERVERS[name]
        command = own_server_command() if protocol is None else prepare_peer(protocol).driver_command(["serve"])
        server = ServerProcess(command, ["-t", str(args.threads)], environment=PATIENT)
        endpoints[name] = stack.enter_context(server).endpoint
    tokenizing = ["tokenize", "--model", str(path), "--text", str(folder / "text.txt"), "--limit", str(args.tokens + 1)]
    start_token, *tokens = next(iter(client_events(peer, tokenizing)))["ids"]
    if len(tokens) != args.tokens:
        raise PeerError(f"the text has only {len(tokens)} tokens")
    runs = [{"label": label, "rpc": [endpoints["reference"]], "flash": flash} for label, flash in STOCK.items()]
    arguments = ["--model", str(path), "--runs", json.dumps(runs), "--threads", str(args.threads)]
    arguments += ["--n-ctx", str(args.n_ctx), "--n-batch", str(args.n_batch)]
    stock = stack.enter_context(StockClient(peer, arguments, folder))
    contexts = dict(zip(args.runs, _open_contexts(args, endpoints, path, stack), strict=True))
    scores = Scores([*STOCK, *contexts])
    step = args.n_ctx - 1
    for window in range(0, len(tokens), step):
        targets = np.array(tokens[window : window + step])
        inputs = [start_token, *tokens[window : window + step]][: len(targets)]
        for context in contexts.values():
            context.clear()
        for at in range(0, len(inputs), args.n_batch):
            batch = inputs[at : at + args.n_batch]
            scores.begin(targets[at : at + args.n_batch])
            for label in STOCK:
                start = time.perf_counter()
                rows = stock.decode(label, batch, clear=at == 0)
                scores.add(label, rows, time.perf_counter() - start)
            for label, context in contexts.items():
                start = time.perf_counter()
                decoded = context.decode(batch, logits="all").logits
                assert decoded is not None
                scores.add(label, decoded, time.perf_counter() - start)
        means = ", ".join(f"{label} {np.log(v.perplexity):.4f}" for label, v in scores.verdicts().items())
        print(f"{min(window + step, len(tokens)):6} tokens: mean nll {means}", flush=True)
    return scores


def run(args: argparse.Namespace) -> bool:
    """Measure, print and write the verdicts; tell whether all of ours pass."""
    with terminable(), ExitStack() as stack:
        scores = _measure(args, prepare_peer("8.0"), prepare_model(), stack)
    verdicts = scores.verdicts()
    limit = verdicts["stock-off"].kl
    passed = {
        label: abs(verdicts[label].ln_ratio) <= 3 * verdicts[label].standard_error and verdicts[label].kl <= limit
        for label in args.runs
    }
    print(f"\n{'':20} {'perplexity':>10} {'ln ratio':>10} {'std error':>10} {'mean KL':>10} {'tokens/s':>9}")
    for label, verdict in verdicts.items():
        errors = f"{verdict.ln_ratio:10.6f} {verdict.standard_error:10.6f}"
        rate = args.tokens / scores.seconds[label]
        outcome = "" if label not in passed else "passed" if passed[label] else "FAILED"
        print(f"{label:20} {verdict.perplexity:10.4f} {errors} {verdict.kl:10.6f} {rate:9.1f} {outcome}")
    print("\nours pass within 3 standard errors and below stock-off's KL, stock's flash attention on against off")
    if args.out:
        record = {"machine": describe(), "tokens": args.tokens, "n_ctx": args.n_ctx, "passed": passed}
        record["verdicts"] = {label: asdict(verdict) for label, verdict in verdicts.items()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return all(passed.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.client_accuracy", description=__doc__)
    parser.add_argument("runs", nargs="*", default=list(OURS), help=f"of {', '.join(OURS)}; all")
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("-c", "--n-ctx", type=int, default=512, help="positions of a window")
    parser.add_argument("-b", "--n-batch", type=int, default=128)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    unknown = [label for label in args.runs if label not in OURS]
    if unknown:
        parser.error(f"no run is called {unknown[0]}; there are {', '.join(OURS)}")
    try:
        return 0 if run(args) else 1
    except (PeerError, ServerError, RpcError, RuntimeError, OSError) as error:
        print(f"client_accuracy: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
