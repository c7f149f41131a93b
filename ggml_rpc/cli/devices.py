"""The command ``ggml-rpc devices``: what this machine can compute on."""

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
        What its kernels are compiled for: the instruction-set level in use.
    levels : tuple of str
        All levels that this build holds and this machine runs, best first.
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
    # Here, so that --help needs no native module.
    from ggml_rpc.devices.cpu import CpuPool, forced_level, levels

    pool = CpuPool(1, forced_level())
    device = pool.device()
    free_bytes, total_bytes = device.memory()
    return [
        LocalDevice(device.name, device.description, total_bytes, free_bytes, False, pool.level, tuple(levels())),
    ]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``ggml-rpc devices``."""
    parser = argparse.ArgumentParser(prog="ggml-rpc devices", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc devices`` and return its exit status."""
    options = build_parser().parse_args(argv)
    try:
        devices = local_devices()
    except RpcError as error:
        print(f"ggml-rpc devices: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([asdict(device) for device in devices], indent=2))
        return 0
    print("Devices:")
    for device in devices:
        print(device.line())
        others = ", ".join(level for level in device.levels if level != device.level)
        print(f"    instruction set: {device.level}" + (f" (also there: {others})" if others else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
