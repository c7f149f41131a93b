"""Measure our client beside the stock one, both on the same server of ours, turn by turn: ``python -m bench.client``.

Decoding and prefill of both through one server (A B A B, medians); the client's own work a token, as processor time of
the thread that generates; and two servers against one: decode with layers over both, prefill that flows through both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.peers import Peer, PeerError, prepare_peer
from ggml_rpc.peers.process import ServerError, ServerProcess, own_server_command, terminable

from .machine import describe
from .models import NAMES, model
from .run import client_events

WARM_UP = 4
STOCK_UBATCH = 512  # what the stock client takes without being asked


@dataclass
class Speed:
    """Tokens a second over several turns.

    Attributes
    ----------
    prefill, decode : list of float
        Tokens a second.
    host_us : list of float
        Processor time of the client's thread for one token, microseconds.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    host_us: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return medians and turns."""
        kinds = {"prefill": self.prefill, "decode": self.decode, "host_us": self.host_us}
        return {name: {"median": statistics.median(v), "turns": v} for name, v in kinds.items() if v}


def stock_turn(peer: Peer, path: Path, endpoint: str, args: argparse.Namespace, into: Speed) -> None:
    """Let the stock client read a prompt and decode tokens given, with all logits of each."""
    runs = json.dumps([{"label": "stock", "rpc": [endpoint]}])
    arguments = ["bench", "--model", str(path), "--runs", runs, "--repeats", "1", "--threads", "1"]
    arguments += ["--prefill", str(args.prefill), "--decode", str(args.decode)]
    for event in client_events(peer, arguments):
        if event["event"] == "speed":
            into.prefill.append(event["prefill_tps"])
            into.decode.append(event["decode_tps"])


def own_turn(path: Path, endpoints: Sequence[str], args: argparse.Namespace, ubatch: int, into: Speed) -> None:
    """Do the same with ours; several servers take equal numbers of layers."""
    settings = ContextSettings(args.prefill + args.decode + 32, args.prefill, ubatch)
    split = [1.0] * len(endpoints)
    with (
        open_devices(endpoints, threads=1) as devices,
        Model.open(path, devices, settings=settings, tensor_split=split) as opened,
    ):
        context = opened.context()
        tokens = np.random.default_rng(1).integers(3, opened.hparams.n_vocab, args.prefill + args.decode)
        context.decode(tokens[: args.prefill])
        context.decode(tokens[:1])
        context.clear()
        start = time.perf_counter()
        context.decode(tokens[: args.prefill])
        into.prefill.append(args.prefill / (time.perf_counter() - start))
        start, begun = time.perf_counter(), time.thread_time()
        for token in tokens[args.prefill :]:
            context.decode([int(token)])
        into.host_us.append((time.thread_time() - begun) / args.decode * 1e6)
        into.decode.append(args.decode / (time.perf_counter() - start))
        context.close()


def generate_turn(path: Path, endpoints: Sequence[str], args: argparse.Namespace, into: Speed) -> None:
    """Generate text with the default sampler, streaming."""
    sampling = SamplingParams(seed=1)
    with LLM(path, rpc=endpoints, threads=1, n_ctx=args.prefill + args.decode + 32) as llm:
        prompt = np.random.default_rng(1).integers(3, llm.model.hparams.n_vocab, args.prefill).tolist()
        for _ in llm.generate(prompt, max_tokens=WARM_UP, sampling=sampling, ignore_eos=True):
            pass
        stream = iter(llm.generate(prompt, max_tokens=args.decode, sampling=sampling, ignore_eos=True))
        next(stream)
        start, begun = time.perf_counter(), time.thread_time()
        count = sum(1 for _ in stream)
        into.host_us.append((time.thread_time() - begun) / count * 1e6)
        into.decode.append(count / (time.perf_counter() - start))


def run(args: argparse.Namespace) -> None:
    """Measure, print and write the figures."""
    peer = prepare_peer("8.0")
    path = model(args.model)
    one_core = ["taskset", "-c"] if len(os.sched_getaffinity(0)) > 1 else []
    with terminable(), ExitStack() as stack:
        server = stack.enter_context(ServerProcess(own_server_command(), ["-t", str(args.threads)])).endpoint
        figures = {"stock client": Speed(), "our client": Speed(), "our client, generating": Speed()}
        for turn in range(args.repeats):
            stock_turn(peer, path, server, args, figures["stock client"])
            own_turn(path, [server], args, STOCK_UBATCH, figures["our client"])
            generate_turn(path, [server], args, figures["our client, generating"])
            print(f"turn {turn + 1} of {args.repeats}", file=sys.stderr, flush=True)
        if one_core:
            cores = sorted(os.sched_getaffinity(0))[:2]
            pinned = [
                stack.enter_context(ServerProcess([*one_core, str(core), *own_server_command()], ["-t", "1"])).endpoint
                for core in cores
            ]
            figures |= {"one pinned server": Speed(), "two pinned servers": Speed()}
            for _ in range(args.repeats):
                own_turn(path, pinned[:1], args, args.ubatch, figures["one pinned server"])
                own_turn(path, pinned, args, args.ubatch, figures["two pinned servers"])
    print(f"\n{'':24} {'prefill t/s':>12} {'decode t/s':>12} {'host us/token':>14}")
    for label, speed in figures.items():
        cells = [f"{statistics.median(v):.1f}" if v else "" for v in (speed.prefill, speed.decode, speed.host_us)]
        print(f"{label:24} {cells[0]:>12} {cells[1]:>12} {cells[2]:>14}")
    if args.out:
        record = {"machine": describe(), "model": args.model, "arguments": vars(args) | {"out": str(args.out)}}
        record["figures"] = {label: speed.record() for label, speed in figures.items()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.client", description=__doc__)
    parser.add_argument("model", nargs="?", default="gemma", help=f"a GGUF file or one of {', '.join(NAMES)}")
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the server")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prefill", type=int, default=1024)
    parser.add_argument("--ubatch", type=int, default=128, help="of the prompt that flows through pinned servers")
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    try:
        run(parser.parse_args(argv))
    except (PeerError, ServerError, RuntimeError, OSError) as error:
        print(f"client: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
