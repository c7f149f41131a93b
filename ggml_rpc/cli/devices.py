"""The command ``ggml-rpc devices``: what this machine, or servers, can compute on."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ggml_rpc.errors import RpcError

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
    upload_bytes_per_s, download_bytes_per_s : float
        Speed of transfers to and from it.
    """

    name: str
    endpoint: str
    protocol: str
    total_bytes: int
    free_bytes: int
    latency_us: float
    upload_bytes_per_s: float
    download_bytes_per_s: float


def remote_devices(endpoints: Sequence[str], timeout: float) -> list[RemoteDevice]:
    """Return the devices of servers, in the order of the endpoints.

    Raises
    ------
    RpcError
        If one of the servers cannot be reached; the message names it.
    ValueError
        If an endpoint is malformed.
    """
    from ggml_rpc.client.link import measure_link  # noqa: PLC0415  native modules, which --help does not need
    from ggml_rpc.client.remote import connect  # noqa: PLC0415

    found: list[RemoteDevice] = []
    for endpoint in endpoints:
        with connect(endpoint, timeout=timeout, connect_timeout=timeout) as server:
            memory = [device.memory() for device in server.devices]
            link = measure_link(server)
            found += [
                RemoteDevice(
                    f"RPC{len(found) + i}",
                    server.endpoint,
                    server.dialect.name,
                    total,
                    free,
                    link.latency * 1e6,
                    link.upload,
                    link.download,
                )
                for i, (free, total) in enumerate(memory)
            ]
    return found


def print_remote(devices: Sequence[RemoteDevice]) -> None:
    """Print a server's line and the lines of its devices."""
    endpoint = None
    for device in devices:
        if device.endpoint != endpoint:
            endpoint = device.endpoint
            rates = f"{device.upload_bytes_per_s / 1e9:.2f} GB/s up, {device.download_bytes_per_s / 1e9:.2f} GB/s down"
            print(f"{endpoint}: protocol {device.protocol}, round trip {device.latency_us:.0f} us, {rates}")
        print(f"  {device.name}: {device.total_bytes // MIB} MiB, {device.free_bytes // MIB} MiB free")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ggml-rpc devices``."""
    parser = argparse.ArgumentParser(prog="ggml-rpc devices", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--rpc", metavar="HOST:PORT,...", help="list the devices of these servers, with the speed of the way there"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="SECONDS", help="how long to wait for a server (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc devices`` and return its exit status."""
    options = build_parser().parse_args(argv)
    try:
        if options.rpc is not None:
            remote = remote_devices([word for word in options.rpc.split(",") if word], options.timeout)
            print(json.dumps([asdict(d) for d in remote], indent=2)) if options.json else print_remote(remote)
            return 0
        devices = local_devices()
    except (RpcError, ValueError) as error:
        print(f"ggml-rpc devices: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(device) for device in devices], indent=2))
        return 0
    print("Devices:")
    for device in devices:
        print(device.line())
        others = ", ".join(level for level in device.levels if level != device.level)
        if device.level:
            print(f"    instruction set: {device.level}" + (f" (also there: {others})" if others else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
