"""The command ``ggml-rpc devices``: what this machine, or servers, can compute on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ggml_rpc.errors import RpcError

from .arguments import Parser, seconds
from .command import Refused, execute
from .links import LinkRow

if TYPE_CHECKING:
    from ggml_rpc.client.remote import Server

PROG = "ggml-rpc devices"
MIB = 1 << 20


@dataclass(frozen=True)
class LocalDevice:
    """Describe one device of this machine.

    Parameters
    ----------
    name : str
        What ``-d`` of the server takes.
    description : str
        Name of the hardware.
    total_bytes, free_bytes : int
        Its memory: all of it, and what a server could still promise.
    accelerator : bool
        A server without ``-d`` takes all accelerators, or the CPU where there are none.
    level : str
        The CPU's instruction-set level in use; empty for accelerators.
    levels : tuple of str
        All of the CPU's levels that this build holds and this machine runs, best first.
    """

    name: str
    description: str
    total_bytes: int
    free_bytes: int
    accelerator: bool
    level: str
    levels: tuple[str, ...]

    def line(self) -> str:
        """Return the line that stock servers print for a device."""
        return device_line(self.name, self.description, self.free_bytes, self.total_bytes)


def device_line(name: str, description: str, free_bytes: int, total_bytes: int) -> str:
    """Return a device's line of the server's start-up text, whole MiB rounded down."""
    return f"  {name}: {description} ({total_bytes // MIB} MiB, {free_bytes // MIB} MiB free)"


def local_devices() -> list[LocalDevice]:
    """Return the devices of this machine, accelerators first.

    Raises
    ------
    DeviceError
        If GGML_RPC_ISA forces an instruction-set level that this machine lacks.
    """
    from ggml_rpc import devices  # noqa: PLC0415  native modules, which --help does not need
    from ggml_rpc.devices.cpu import forced_level, levels  # noqa: PLC0415

    found = []
    for name in devices.available():
        device = devices.open_devices([name], threads=1)[0]
        free_bytes, total_bytes = device.memory()
        on_cpu = name == devices.CPU
        known = tuple(levels()) if on_cpu else ()
        level = (forced_level() or known[0]) if on_cpu else ""
        found.append(LocalDevice(name, device.description, total_bytes, free_bytes, not on_cpu, level, known))
    return found


@dataclass(frozen=True)
class RemoteDevice:
    """Describe one device of a server.

    Parameters
    ----------
    name : str
        What ``--device`` of ``ggml-rpc run`` takes, for the same list of servers.
    endpoint : str
        The server's ``host:port``.
    protocol : str
        The protocol table in use with it.
    total_bytes, free_bytes : int
        Its memory.
    latency_us : float
        A round trip to the server.
    upload_bytes_per_s, download_bytes_per_s : float or None
        Speed of transfers to and from it; None if the server has no memory for one.
    """

    name: str
    endpoint: str
    protocol: str
    total_bytes: int
    free_bytes: int
    latency_us: float
    upload_bytes_per_s: float | None
    download_bytes_per_s: float | None


@dataclass(frozen=True)
class Unreached:
    """Say why a server's devices are not known.

    Parameters
    ----------
    endpoint : str
        The server.
    error : str
        Why.
    """

    endpoint: str
    error: str


def remote_devices(endpoints: Sequence[str], timeout: float) -> Iterator[list[RemoteDevice] | Unreached]:
    """Yield the devices of each server, or why they are not known, in the order of the endpoints.

    All are asked at once. The way is measured to one after the other, as they may share a network.
    """
    # Native modules, which --help does not need.
    from ggml_rpc.client.remote import connect  # noqa: PLC0415

    number = 0
    with ExitStack() as opened, ThreadPoolExecutor(len(endpoints), thread_name_prefix="connect") as pool:

        def ask(endpoint: str) -> tuple[Server, list[tuple[int, int]]]:
            server = connect(endpoint, timeout=timeout, connect_timeout=timeout)
            opened.callback(server.close)
            return server, [device.memory() for device in server.devices]

        asked = [pool.submit(ask, endpoint) for endpoint in endpoints]
        for endpoint, future in zip(endpoints, asked, strict=True):
            try:
                server, memory = future.result()
                link = LinkRow.measure(server)
            except (RpcError, ValueError) as error:
                yield Unreached(endpoint, str(error))
                continue
            yield [
                RemoteDevice(
                    f"RPC{number + i}",
                    link.endpoint,
                    link.protocol,
                    total,
                    free,
                    link.latency_us,
                    link.upload_bytes_per_s,
                    link.download_bytes_per_s,
                )
                for i, (free, total) in enumerate(memory)
            ]
            number += len(memory)


def remote_lines(devices: Sequence[RemoteDevice]) -> list[str]:
    """Return a server's line and the lines of its devices."""
    first = devices[0]
    up, down = (
        "no memory to measure" if value is None else f"{value / 1e9:.2f} GB/s"
        for value in (first.upload_bytes_per_s, first.download_bytes_per_s)
    )
    way = f"round trip {first.latency_us:.0f} us, {up} to it, {down} from it"
    return [
        f"{first.endpoint}: protocol {first.protocol}, {way}",
        *(f"  {d.name}: {d.total_bytes // MIB} MiB, {d.free_bytes // MIB} MiB free" for d in devices),
    ]


def show_remote(text: str, timeout: float, as_json: bool) -> int:
    """Print the devices of servers and return the exit status: 1 if one of them failed."""
    endpoints = [word.strip() for word in text.split(",")]
    if not all(endpoints):
        raise Refused(f"the list of servers {text!r} has an empty entry: write HOST:PORT,HOST:PORT")
    rows: list[RemoteDevice | Unreached] = []
    for found in remote_devices(endpoints, timeout):
        if isinstance(found, Unreached):
            rows.append(found)
            print(f"{PROG}: {found.error}", file=sys.stderr, flush=True)
        else:
            rows += found
            if not as_json:
                print("\n".join(remote_lines(found)), flush=True)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    return int(any(isinstance(row, Unreached) for row in rows))


def show_local(as_json: bool) -> int:
    """Print the devices of this machine."""
    devices = local_devices()
    if as_json:
        print(json.dumps([asdict(device) for device in devices], indent=2))
        return 0
    print("Devices:")
    for device in devices:
        print(device.line())
        others = ", ".join(level for level in device.levels if level != device.level)
        if device.level:
            print(f"    instruction set: {device.level}" + (f" (also there: {others})" if others else ""))
    return 0


def show_ops(as_json: bool) -> int:
    """Print for each op which types the CPU takes and whether there are CUDA kernels; needs no GPU."""
    from .op_types import lines, refusals, table  # noqa: PLC0415  native modules, and nodes are compiled

    if as_json:
        ops = {row.op: {"cpu": row.types, "cuda": row.cuda} for row in table()}
        print(json.dumps({"ops": ops, "refused": refusals()}, indent=2))
        return 0
    print("\n".join(lines()))
    return 0


def build_parser() -> Parser:
    """Return the parser of ``ggml-rpc devices``."""
    parser = Parser(PROG, "List what this machine, or servers, can compute on.")
    parser.add_argument(
        "--rpc", metavar="HOST:PORT,...", help="list the devices of these servers, with the speed of the way there"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for a server (10)",
    )
    parser.add_argument(
        "--ops", action="store_true", help="list the types that the CPU takes for each op, and which ops CUDA has"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc devices`` and return its exit status."""
    options = build_parser().parse_args(argv)
    if options.ops:
        return execute(PROG, lambda signals: show_ops(options.json))
    if options.rpc is None:
        return execute(PROG, lambda signals: show_local(options.json))
    return execute(PROG, lambda signals: show_remote(options.rpc, options.timeout, options.json))


if __name__ == "__main__":
    sys.exit(main())
