"""TCP sockets as the protocol wants them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import time
from typing import Any

BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket on a host name or address (IPv4 or IPv6) and a port; port 0 picks a free one.

    Raises
    ------
    OSError
        If the name is not known or the address is taken; the message names both.
    """
    try:
        infos = _addresses(host, port, socket.AI_PASSIVE)
    except socket.gaierror as e:
        raise OSError(f"cannot listen on {host!r}: {e.strerror}") from e
    family, kind, protocol, _, address = infos[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        raise OSError(f"cannot listen on {format_endpoint(host, port)}: {e.strerror}") from e
    return sock


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """Return a connected, configured socket; all addresses of a name are tried in turn.

    Parameters
    ----------
    host : str
        Name or address, IPv4 or IPv6 (without brackets).
    port : int
        1 to 65535.
    timeout : float
        Seconds for all addresses together. How long a name may take to resolve is the resolver's to say.

    Raises
    ------
    TimeoutError
        If no address answered in time.
    OSError
        If the name is not known or all addresses refuse; `strerror` is the reason of the last one.
    """
    deadline = time.monotonic() + timeout
    addresses = _addresses(host, port)
    failure = OSError(0, "the name has no address")
    for i, (family, kind, protocol, _, address) in enumerate(addresses):
        # An address that never answers must leave time for those after it.
        share = (deadline - time.monotonic()) / (len(addresses) - i)
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.settimeout(max(share, 1e-3))
            try:
                sock.connect(address)
            except OSError as e:
                failure = e
                continue
            configure(sock)
            undo.pop_all()
            return sock
    raise failure


def _addresses(host: str, port: int, flags: int = 0) -> list[tuple[Any, ...]]:
    """Return what `socket.getaddrinfo` does; a text that can be no name is one that is not known."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:  # a label that is empty or longer than 63 letters
        raise socket.gaierror(socket.EAI_NONAME, "it can be no host's name") from None


def configure(sock: socket.socket) -> None:
    """Prepare a connected socket: no delay, keep-alive."""
    sock.setblocking(True)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def set_stall_time(sock: socket.socket, seconds: float) -> None:
    """Let receiving and sending fail after this time without a byte."""
    whole = int(seconds)
    limit = struct.pack("@ll", whole, int((seconds - whole) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def format_endpoint(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_endpoint(endpoint: str, default_port: int) -> tuple[str, int]:
    """Split `host:port`, `host`, `[v6]:port` or `[v6]`; the host comes without brackets.

    Raises
    ------
    ValueError
        If it is none of these; the message names the endpoint and what is wrong.
    """

    def wrong(why: str) -> ValueError:
        return ValueError(f"endpoint {endpoint!r}: {why}; write host:port, as in 192.168.1.2:50052 or [::1]:50052")

    if endpoint.startswith("["):
        host, bracket, rest = endpoint[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise wrong("the brackets do not fit")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise wrong(f"{host!r} is no IPv6 address") from None
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = endpoint.partition(":")
        if ":" in port:
            raise wrong("an IPv6 address stands in brackets")
    if not host or not host.isprintable() or any(c.isspace() for c in host) or "/" in host:
        raise wrong("no host" if not host else f"{host!r} is no host")
    if not colon:
        return host, default_port
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 1 << 16):
        raise wrong(f"{port!r} is no port")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Tell whether an address or name only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
