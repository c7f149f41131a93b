"""Check accuracy on running text: our server against a stock one through the same client, ``python -m bench.accuracy``.

Reads 20,000 tokens with Gemma 3 270M, window by window, on both servers at once. Passes if the mean logarithm of the
perplexity ratio is within three paired standard errors of zero, and the mean divergence of the next-token
distributions is not above that between the stock server's own flash attention on and off.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.peers import PeerError, prepare_model, prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerError, ServerProcess, own_server_command, terminable

from .machine import describe
from .run import client_events

PROTOCOL = "8.0"
CHARACTERS_PER_TOKEN = 6  # more than any English text has with this tokenizer: the text never runs short
SHORTEST = 300
RUNS = (
    ("stock-on", "stock", "on"),
    ("stock-off", "stock", "off"),
    ("ours-on", "ours", "on"),
)


def documentation(characters: int) -> str:
    """Return English prose that every machine has: the longer docstrings of Python's own library, in a fixed order."""
    parts = []
    total = 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            text = ast.get_docstring(node) or ""
            if len(text) < SHORTEST:
                continue
            parts.append(text)
            total += len(text) + 2
            if total >= characters:
                return "\n\n".join(parts)[:characters]
    raise PeerError(f"this Python's library holds only {total} characters of documentation")


@dataclass(frozen=True)
class Verdict:
    """Hold the comparison of one run with the reference, stock with flash attention on.

    Attributes
    ----------
    perplexity : float
        Exponential of the mean negative log-likelihood.
    ln_ratio : float
        Mean logarithm of the ratio of perplexities; above 0 the run is worse than the reference.
    standard_error : float
        Of `ln_ratio`, paired over tokens.
    kl : float
        Mean Kullback-Leibler divergence from the reference, in nats.
    """

    perplexity: float
    ln_ratio: float
    standard_error: float
    kl: float


def judge(nll: NDArray[np.float64], reference: NDArray[np.float64], kl: NDArray[np.float64]) -> Verdict:
    """Compare the negative log-likelihoods of the same tokens.

    Parameters
    ----------
    nll, reference : numpy.ndarray
        Shape ``(tokens,)``, nats.
    kl : numpy.ndarray
        Shape ``(tokens,)``, divergence of each next-token distribution from the reference's.
    """
    difference = nll - reference
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return Verdict(float(np.exp(nll.mean())), float(difference.mean()), float(error), float(kl.mean()))


def run(args: argparse.Namespace) -> bool:
    """Measure, print and write the verdicts; tell whether ours passes."""
    peer = prepare_peer(PROTOCOL)
    path = prepare_model()
    own = shlex.split(args.own_command) if args.own_command else [*own_server_command(), "--proto", PROTOCOL]
    commands = {"stock": peer.driver_command(["serve"]), "ours": own}
    with terminable(), ExitStack() as stack:
        options = ["-t", str(args.threads)]
        endpoints = {
            label: stack.enter_context(ServerProcess(command, options, environment=PATIENT)).endpoint
            for label, command in commands.items()
        }
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "text.txt").write_text(documentation(args.tokens * CHARACTERS_PER_TOKEN))
        runs = [{"label": label, "rpc": [endpoints[server]], "flash": flash} for label, server, flash in RUNS]
        arguments = ["compare", "--model", str(path), "--text", str(folder / "text.txt"), "--runs", json.dumps(runs)]
        arguments += ["--tokens", str(args.tokens), "--out", str(folder / "out.npz")]
        for event in client_events(peer, arguments):
            if event["event"] == "window":
                means = ", ".join(f"{label} {value:.4f}" for label, value in event["nll"].items())
                print(f"{event['tokens']:6} tokens: mean nll {means}", flush=True)
        with np.load(folder / "out.npz") as arrays:
            data = {name: arrays[name] for name in arrays.files}
    reference = data["nll_stock-on"]
    if len(reference) != args.tokens:
        raise PeerError(f"the text has only {len(reference)} tokens")
    verdicts = {label: judge(data[f"nll_{label}"], reference, data[f"kl_{label}"]) for label, _server, _flash in RUNS}
    print(f"\n{'':10} {'perplexity':>10} {'ln ratio':>10} {'std error':>10} {'mean KL':>10}")
    for label, verdict in verdicts.items():
        errors = f"{verdict.ln_ratio:10.6f} {verdict.standard_error:10.6f}"
        print(f"{label:10} {verdict.perplexity:10.4f} {errors} {verdict.kl:10.6f}")
    ours, limit = verdicts["ours-on"], verdicts["stock-off"].kl
    passed = abs(ours.ln_ratio) <= 3 * ours.standard_error and ours.kl <= limit
    print(
        f"\n{'passed' if passed else 'FAILED'}: |{ours.ln_ratio:.6f}| against {3 * ours.standard_error:.6f}, ", end=""
    )
    print(f"KL {ours.kl:.6f} against {limit:.6f}")
    if args.out:
        record = {"machine": describe(), "tokens": args.tokens, "passed": passed}
        record["verdicts"] = {label: asdict(verdict) for label, verdict in verdicts.items()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    return passed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each server")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--own-command", default="", help="argv prefix of the server under test, in place of ours")
    try:
        return 0 if run(parser.parse_args(argv)) else 1
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
