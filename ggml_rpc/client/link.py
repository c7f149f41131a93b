"""How fast the way to a server is."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from ggml_rpc.errors import OutOfMemory
from ggml_rpc.graph._tensor import Tensor

from .device import Device
from .remote import Server

ROUND_TRIPS = 21
PAYLOAD_BYTES = 32 << 20
SMALLEST_PAYLOAD_BYTES = 64 << 10


@dataclass(frozen=True)
class Link:
    """Describe the way to a server and back.

    Attributes
    ----------
    latency : float
        Seconds of a round trip, the median of some.
    upload, download : float
        Bytes a second of tensor contents to the server and from it.
    """

    latency: float
    upload: float
    download: float


def measure_link(server: Server, *, payload: int = PAYLOAD_BYTES) -> Link:
    """Time round trips and one transfer each way.

    Parameters
    ----------
    server : Server
        An open connection that nothing else uses meanwhile.
    payload : int
        Bytes to send and to fetch; less if the server has not so much memory free.

    Raises
    ------
    OutOfMemory
        If it has not even 64 KiB.
    """
    latency = statistics.median(server.ping() for _ in range(ROUND_TRIPS))
    device = server.devices[0]
    t = _scratch(device, payload)
    data = bytearray(t.nbytes)
    device.write(t, data)
    device.synchronize()  # the server's pages are there now
    start = time.perf_counter()
    device.write(t, data)
    device.synchronize()
    up = time.perf_counter() - start
    start = time.perf_counter()
    device.start_read(t, data).result()
    down = time.perf_counter() - start
    return Link(latency, t.nbytes / up, t.nbytes / down)


def _scratch(device: Device, size: int) -> Tensor:
    while True:
        try:
            return device.empty("I8", (size,), name="link")
        except OutOfMemory:
            size //= 8
            if size < SMALLEST_PAYLOAD_BYTES:
                raise
