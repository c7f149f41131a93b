"""How fast the way to a server is, as commands tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggml_rpc.errors import OutOfMemory

if TYPE_CHECKING:
    from ggml_rpc.client.remote import Server


@dataclass(frozen=True)
class LinkRow:
    """Describe the way to a server.

    Parameters
    ----------
    endpoint, protocol : str
        The server and what it speaks.
    latency_us : float
        A round trip.
    upload_bytes_per_s, download_bytes_per_s : float or None
        Transfers to it and from it; None if it has no memory for one.
    """

    endpoint: str
    protocol: str
    latency_us: float
    upload_bytes_per_s: float | None
    download_bytes_per_s: float | None

    @classmethod
    def measure(cls, server: Server) -> LinkRow:
        """Measure; raises what the connection raises."""
        from ggml_rpc.client.link import measure_link  # noqa: PLC0415  native modules

        try:
            link = measure_link(server)
        except OutOfMemory:
            return cls(server.endpoint, server.dialect.name, server.ping() * 1e6, None, None)
        return cls(server.endpoint, server.dialect.name, link.latency * 1e6, link.upload, link.download)
