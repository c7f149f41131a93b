"""The command ``ggml-rpc-server``: flags and start-up text as the servers of llama.cpp and ik_llama.cpp have them."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from ggml_rpc import __version__
from ggml_rpc.cli.devices import device_line, local_devices
from ggml_rpc.errors import RpcError
from ggml_rpc.spec import dialects
from ggml_rpc.spec.limits import DEFAULT_PORT
from ggml_rpc.transport.tcp import is_loopback

# The server brings native modules: it is imported where it is needed, so that --help and --version load none.
if TYPE_CHECKING:
    from ggml_rpc.server import Protocol, Server

PROG = "ggml-rpc-server"
DEBUG_VARIABLE = "GGML_RPC_DEBUG"
MAX_PORT = 65535
MAX_THREADS = 1024  # the CPU device's own bound
BAR = 40  # characters of a progress bar

EPILOG = f"""protocols: auto, {", ".join(dialects.NAMES)}

environment:
  LLAMA_CACHE, XDG_CACHE_HOME, HOME   where -c keeps tensors: LLAMA_CACHE/rpc, else llama.cpp/rpc in the cache folder
  {DEBUG_VARIABLE}=1                    log a line a command
  GGML_RPC_ISA=LEVEL                  force an instruction-set level (`ggml-rpc devices` lists them)
  CUDA_VISIBLE_DEVICES                the GPUs that exist for this process

Never expose a server to an open network: there is no authentication and no encryption.
"""


class StartError(Exception):
    """Tell why the server cannot start."""


class _Stopped(Exception):
    """Raised in the main thread by the first SIGINT or SIGTERM."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, not the whole usage, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


@dataclass(frozen=True)
class Options:
    """Hold a command line that was found right.

    Parameters
    ----------
    host : str
        Address or name to listen on, without brackets.
    port : int
        Port of the first protocol; 0 picks a free one.
    threads : int or None
        Threads of the CPU devices together; None is half the cores.
    devices : tuple of str
        Names wanted; empty for the default.
    cpu : bool
        Add the CPU to the accelerators.
    cache : bool
        Keep large tensors on disk.
    protocols : tuple of Protocol
        Dialects and their own ports.
    graph_timeout : float
        Seconds; 0 is no limit.
    numa : str or None
        How the CPU devices use several memory nodes.
    explain : bool
        Log what is inferred about each client's protocol.
    warmup : bool
        Compile all kernels of the GPUs before the server starts.
    """

    host: str
    port: int
    threads: int | None
    devices: tuple[str, ...]
    cpu: bool
    cache: bool
    protocols: tuple[Protocol, ...]
    graph_timeout: float
    numa: str | None
    explain: bool
    warmup: bool


def _integer(text: str, low: int, high: int, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, flags=re.ASCII) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is no {what} ({low} to {high})")
    return int(text)


def parse_port(text: str) -> int:
    """Return a port number."""
    return _integer(text, 0, MAX_PORT, "port")


def parse_threads(text: str) -> int:
    """Return a number of threads."""
    return _integer(text, 1, MAX_THREADS, "number of threads")


def parse_seconds(text: str) -> float:
    """Return a time in seconds: 0, or a millisecond to three years."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds != 0 and not 1e-3 <= seconds <= 1e8:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds")
    return seconds


def parse_devices(text: str) -> tuple[str, ...]:
    """Return the names of a list separated by commas or slashes."""
    names = tuple(name for name in (part.strip() for part in re.split(r"[,/]+", text)) if name)
    if not names:
        raise argparse.ArgumentTypeError("the list of devices is empty")
    return names


def parse_host(text: str) -> str:
    """Return an address or a name; an IPv6 address may stand in brackets."""
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not host or any(c.isspace() for c in host):
        raise argparse.ArgumentTypeError(f"{text!r} is no host")
    return host


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the server's command line."""
    parser = _Parser(
        prog=PROG,
        description="Let llama.cpp clients compute on this machine over the ggml RPC protocol.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this text and exit")
    add("--version", action="version", version=f"{PROG} {__version__}", help="show the version and exit")
    add("-H", "--host", "--Host", type=parse_host, default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add(
        *("-p", "-P", "--port", "--Port"),
        type=parse_port,
        default=DEFAULT_PORT,
        help=f"port to listen on ({DEFAULT_PORT}); 0 picks a free one and prints it",
    )
    add(
        *("-t", "--threads"),
        type=parse_threads,
        metavar="N",
        help="threads of the CPU devices together (half the cores)",
    )
    add(
        *("-d", "-dev", "--device"),
        type=parse_devices,
        default=(),
        metavar="NAMES",
        help="devices to offer, separated by commas or slashes (all accelerators, else the CPU)",
    )
    add("-cpu", "--cpu", action="store_true", help="offer the CPU beside the accelerators")
    add("-c", "--cache", action="store_true", help="keep large tensors in a folder; every client can then read them")
    add(
        "--proto",
        default="auto",
        metavar="LIST",
        help="protocol to speak: auto (what fits the client), a name, or several with ports: auto,7.0@50053",
    )
    add("--explain", action="store_true", help="say of each client which protocol it speaks, and how that shows")
    add("--warmup", action="store_true", help="compile all kernels for the GPUs first; else each on its first use")
    add(
        "--graph-timeout",
        type=parse_seconds,
        default=0.0,
        metavar="SECONDS",
        help="end a graph, and its connection, after this time (0: never)",
    )
    add(
        "--numa",
        choices=("distribute", "isolate"),
        help="several memory nodes: use all evenly, or keep threads and memory to one (as the system likes)",
    )
    return parser


def parse(argv: Sequence[str] | None) -> Options:
    """Return the options of a command line.

    Raises
    ------
    SystemExit
        With status 2 and one line on stderr if the command line is wrong; with status 0 after --help and --version.
    """
    parser = build_parser()
    given = parser.parse_args(argv)
    from ggml_rpc.server import parse_protocols  # noqa: PLC0415

    try:
        protocols = tuple(parse_protocols(given.proto))
    except ValueError as error:
        parser.error(str(error))
    ports = [given.port if protocol.port is None else protocol.port for protocol in protocols]
    fixed = [port for port in ports if port != 0]
    if len(set(fixed)) != len(fixed):
        parser.error("two protocols cannot share a port")
    return Options(
        host=given.host,
        port=given.port,
        threads=given.threads,
        devices=given.device,
        cpu=given.cpu,
        cache=given.cache,
        protocols=protocols,
        graph_timeout=given.graph_timeout,
        numa=given.numa,
        explain=given.explain,
        warmup=given.warmup,
    )


def exposure_warning(host: str) -> str:
    """Return the text that is printed when others than this machine can reach the server."""
    rule = "!" * 72
    return (
        f"\n{rule}\n"
        f"WARNING: '{host}' is not a loopback address: whoever reaches this port can use\n"
        "         this machine's memory and processors. The protocol has no password and\n"
        "         no encryption. Serve trusted networks only.\n"
        f"{rule}\n"
    )


def choose_devices(wanted: Sequence[str], cpu: bool) -> list[str]:
    """Return the names of the devices to offer.

    Parameters
    ----------
    wanted : sequence of str
        Names given by the user, in any case; empty for all accelerators, or the CPU where there are none.
    cpu : bool
        Add the CPU.

    Raises
    ------
    StartError
        If a name is unknown; the text lists the devices there are.
    """
    from ggml_rpc import devices  # noqa: PLC0415

    if not wanted:
        return devices.default_names(with_cpu=cpu)
    by_name = {name.upper(): name for name in devices.available()}
    for name in wanted:
        if name.upper() not in by_name:
            lines = "\n".join(device.line() for device in local_devices())
            why = devices.why_no_accelerator() if name.upper().startswith(devices.cuda.PREFIX) else ""
            raise StartError(f"unknown device: {name}\navailable devices:\n{lines}" + (f"\n{why}" if why else ""))
    names = [by_name[name.upper()] for name in wanted]
    return [*names, devices.CPU] if cpu and devices.CPU not in names else names


def cache_folder() -> Path:
    """Return the folder for ``-c``.

    Raises
    ------
    StartError
        If the environment names none.
    """
    from ggml_rpc.server import cache_directory  # noqa: PLC0415

    folder = cache_directory()
    if folder is None:
        raise StartError("-c: no cache folder: set LLAMA_CACHE, XDG_CACHE_HOME or HOME")
    return folder


def start_text(server: Server, cache: Path | None) -> str:
    """Return what a started server says about itself, in the layout of stock servers."""
    spoken = [(protocol.name, endpoint) for protocol, endpoint in zip(server.protocols, server.endpoints, strict=True)]
    first = server.protocols[0].dialect or dialects.DEFAULT
    lines = [f"Starting RPC server v{first.name}", f"  endpoint       : {spoken[0][1]}"]
    lines += [f"  endpoint       : {endpoint} (v{name})" for name, endpoint in spoken[1:]]
    lines.append(f"  local cache    : {f'{cache}/' if cache else 'n/a'}")
    if server.protocols[0].dialect is None:
        lines.append("  protocol       : auto, what fits the client")
    lines.append("Devices:")
    lines += [device_line(device.name, device.description, *device.memory()) for device in server.devices]
    return "\n".join(lines)


def _on_signal(number: int, frame: FrameType | None) -> None:
    # Closing waits for running graphs to stop; whoever asks a second time does not want to wait.
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, lambda n, f: os._exit(128 + n))
    raise _Stopped


def serve(options: Options) -> None:
    """Run the server until a signal stops it.

    Raises
    ------
    StartError
        If it cannot start.
    """
    names = choose_devices(options.devices, options.cpu)
    from ggml_rpc import devices  # noqa: PLC0415

    if not options.devices and devices.why_no_accelerator():
        print(devices.why_no_accelerator(), file=sys.stderr, flush=True)
    if options.warmup:
        devices.cuda.warm_up(names, warming(sys.stderr))
    cache = cache_folder() if options.cache else None
    from ggml_rpc.server import Server  # noqa: PLC0415

    try:
        server = Server(
            devices=names,
            host=options.host,
            port=options.port,
            threads=options.threads,
            protocols=options.protocols,
            cache_dir=cache,
            graph_timeout=options.graph_timeout,
            numa=options.numa,
            explain=options.explain,
            trace=debugging(),
        )
        server.start()
    except OSError as error:
        raise StartError(str(error)) from error
    try:
        print(start_text(server, cache), flush=True)
        server.serve_forever()
    finally:
        server.close()


def warming(stream: TextIO) -> Callable[[str, int, int], None]:
    """Return what shows how far the kernels are: a bar on a terminal, else a line at the beginning and the end."""

    def show(architecture: str, done: int, total: int) -> None:
        text = f"kernels for {architecture}: {done} of {total}"
        if stream.isatty():
            filled = BAR * done // max(1, total)
            end = "\n" if done == total else ""
            print(f"\r[{'#' * filled}{'.' * (BAR - filled)}] {text}", end=end, file=stream, flush=True)
        elif done == total or architecture not in begun:
            print(text, file=stream, flush=True)
        begun.add(architecture)

    begun: set[str] = set()
    return show


def debugging() -> bool:
    """Tell whether the environment asks for a line a command."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc-server``.

    Returns
    -------
    int
        0 after SIGINT or SIGTERM, 1 if the server cannot start.
    """
    options = parse(argv)
    logging.basicConfig(
        level=logging.DEBUG if debugging() else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    if not is_loopback(options.host):
        print(exposure_warning(options.host), file=sys.stderr, flush=True)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, _on_signal)
        serve(options)
    except _Stopped:
        return 0
    except (StartError, RpcError) as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
