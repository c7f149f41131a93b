"""Show it all at once: ``ggml-rpc demo`` splits a real model over two servers and lets two clients write text.

The first is a stock llama.cpp, the second this package's own.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ggml_rpc.errors import RpcError
from ggml_rpc.peers import PeerError, find_model, find_peer
from ggml_rpc.peers.process import ServerError, ServerProcess, own_server_command, terminable

from .text import ranges

if TYPE_CHECKING:
    from ggml_rpc.llm.loader import LoadProgress

PROMPT = "The history of the printing press began"
BAR_WIDTH = 32
HOW = "run `make demo` in a checkout, or `python -m ggml_rpc.peers prepare 8.0 model`"


class Bar:
    """Draw a progress bar on a terminal; elsewhere print the start and the end."""

    def __init__(self, label: str, stream: TextIO) -> None:
        self._label = label
        self._stream = stream
        self._live = stream.isatty()
        self._shown = -1
        if not self._live:
            print(f"{label} ...", file=stream, flush=True)

    def show(self, fraction: float) -> None:
        """Draw the bar at `fraction`, 0 to 1."""
        percent = int(100 * fraction)
        if self._live and percent != self._shown:
            self._shown = percent
            filled = int(BAR_WIDTH * fraction)
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            print(f"\r{self._label} [{bar}] {percent:3d} %", end="", file=self._stream, flush=True)

    def finish(self, note: str) -> None:
        """End the bar's line with a note."""
        if self._live:
            self.show(1.0)
            print(f"  {note}", file=self._stream, flush=True)
        else:
            print(f"{self._label} done, {note}", file=self._stream, flush=True)


def placement(layers: dict[str, list[int]], devices: dict[str, str]) -> list[str]:
    """Write a line a device that says which layers it runs; the last layer number stands for the output matrix."""
    last = max((number for numbers in layers.values() for number in numbers), default=-1)
    lines = []
    for device, numbers in layers.items():
        blocks = ranges([number for number in numbers if number != last])
        what = [f"layers {blocks}"] if blocks else []
        what += ["output"] if last in numbers else []
        lines.append(f"  {device} on {devices.get(device, 'this machine')}: {' and '.join(what)}")
    return lines


def events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines that the stock client prints."""
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def show(stream: Iterator[dict[str, Any]], prompt: str, out: TextIO) -> bool:
    """Print what the client reports, as it comes; tell whether it came to its end."""
    bar = Bar("loading the model onto the servers", out)
    prefill = ""
    for event in stream:
        kind = event["event"]
        if kind == "progress":
            bar.show(event["value"])
        elif kind == "loaded":
            bar.finish(f"{event['seconds']:.1f} s")
            print("\n".join(placement(event["layers"], event["devices"])), file=out)
        elif kind == "prompt":
            prefill = f"prompt {event['tokens']} tokens, {event['tokens'] / event['seconds']:.1f} tokens/s"
            print(f"\n{prompt}", end="", file=out, flush=True)
        elif kind == "text":
            print(event["piece"], end="", file=out, flush=True)
        elif kind == "done":
            speed = event["tokens"] / event["seconds"] if event["seconds"] else 0.0
            print(f"\n\n{prefill}; generated {event['tokens']} tokens, {speed:.1f} tokens/s", file=out, flush=True)
            return True
    return False


def run(args: argparse.Namespace, out: TextIO) -> int:
    """Start the servers and the client, and show the text."""
    peer = find_peer("8.0")
    if peer is None:
        raise PeerError(f"no stock llama.cpp client here: {HOW}")
    model = Path(args.model) if args.model else find_model()
    if model is None or not model.exists():
        raise PeerError(f"no model {args.model} here" if args.model else f"no model here: {HOW}")
    command = shlex.split(args.server_command) if args.server_command else own_server_command()
    options = ["-t", str(args.threads)] if args.threads else []
    with terminable(), ExitStack() as stack:
        servers = []
        for number in (1, 2):
            server = stack.enter_context(ServerProcess(command, options))
            servers.append(server)
            print(f"server {number}: {server.endpoint} (pid {server.pid})", file=out, flush=True)
        argv = ["generate", "--model", str(model), "--prompt", args.prompt, "-n", str(args.tokens)]
        argv += ["--seed", str(args.seed)]
        for server in servers:
            argv += ["--rpc", server.endpoint]
        print(f"client: stock llama.cpp (llama-cpp-py-sync {peer.version}), model {model.name}", file=out, flush=True)
        client = subprocess.Popen(
            peer.driver_command(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_end, client)
        start = time.perf_counter()
        complete = show(events(client), args.prompt, out)
        status = client.wait()
        if status == -signal.SIGINT:
            # A terminal interrupts all processes of the demonstration; this one may have been where Python drops the
            # exception (a finaliser).
            raise KeyboardInterrupt
        for number, server in enumerate(servers, 1):
            if not server.running():
                print(f"server {number} ended early:\n{server.output()[-2000:]}", file=sys.stderr)
        if not complete or status != 0:
            print(f"the stock client ended with status {status}", file=sys.stderr)
            return 1
        print(f"two servers, one model, {time.perf_counter() - start:.1f} s in all\n", file=out)
        write_with_own_client(model, [server.endpoint for server in servers], args, out)
    return 0


def write_with_own_client(model: Path, endpoints: Sequence[str], args: argparse.Namespace, out: TextIO) -> None:
    """Let this package's client write text over the same servers.

    Raises
    ------
    RpcError
        If the model cannot be loaded or a server is lost.
    """
    from ggml_rpc.llm.generate import LLM  # noqa: PLC0415  native modules, which --help does not need
    from ggml_rpc.llm.sampling import SamplingParams  # noqa: PLC0415

    print(f"client: this package's own, the same servers and model {model.name}", file=out)
    bar = Bar("loading the model onto the servers", out)
    done: dict[object, float] = {}
    start = time.perf_counter()

    def loaded(progress: LoadProgress) -> None:
        done[progress.device] = progress.bytes_done / max(progress.bytes_total, 1)
        bar.show(min(done.values()) if len(done) == len(endpoints) else 0.0)

    with LLM(model, rpc=endpoints, n_ctx=1024, progress=loaded) as llm:
        bar.finish(f"{time.perf_counter() - start:.1f} s")
        layers: dict[str, list[int]] = {}
        homes = [*llm.model.placement.layers, llm.model.placement.output]
        for number, device in enumerate(homes):
            layers.setdefault(device, []).append(number)
        for line in placement(layers, {d.name: str(d.endpoint) for d in llm.model.devices.all}):
            print(line, file=out)
        print(f"\n{args.prompt}", end="", file=out, flush=True)
        answer = llm.generate(args.prompt, max_tokens=args.tokens, sampling=SamplingParams(seed=args.seed))
        for token in answer:
            print(token.text, end="", file=out, flush=True)
        times = answer.timings
    generated = f"generated {times.n_generated + 1} tokens, {times.generate_rate:.1f} tokens/s"
    print(f"\n\nprompt {times.n_prompt} tokens, {times.prompt_rate:.1f} tokens/s; {generated}", file=out)


def _end(client: subprocess.Popen[str]) -> None:
    """End the client if it still runs."""
    if client.poll() is None:
        client.kill()
    client.communicate()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ggml-rpc demo``."""
    parser = argparse.ArgumentParser(prog="ggml-rpc demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="text to go on from")
    parser.add_argument("-n", "--tokens", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("-t", "--threads", type=int, default=0, help="threads of each server")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sampler")
    parser.add_argument("--model", help="a GGUF file (default: Gemma 3 270M)")
    # Lets a test show the same with two stock servers.
    parser.add_argument("--server-command", default="", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc demo`` and return its exit status."""
    args = build_parser().parse_args(argv)
    try:
        return run(args, sys.stdout)
    except (PeerError, ServerError, RpcError) as error:
        print(f"ggml-rpc demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
