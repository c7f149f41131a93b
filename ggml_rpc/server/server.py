"""The server: listeners, connections, shutdown."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ggml_rpc import devices as local
from ggml_rpc.devices import NativeDevice
from ggml_rpc.spec import limits
from ggml_rpc.transport import tcp

from .cache import TensorCache
from .connection import Connection
from .offers import Offers
from .protocols import AUTO, Protocol, parse_protocols

log = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
# After a failed accept (no file descriptors left, say) the listener rests instead of spinning.
ACCEPT_PAUSE_SECONDS = 0.1
# How long close() waits for a session's thread: a cancelled graph ends at the next chunk of work.
JOIN_SECONDS = 10.0
# Limits of time from a millisecond (the system takes 0 for none at all) to three years, which every clock here can add.
_SHORTEST_SECONDS, _LONGEST_SECONDS = 1e-3, 1e8


@dataclass
class _Listener:
    sock: socket.socket
    protocol: Protocol
    endpoint: str


class Server:
    """Serve devices of this machine to clients of llama.cpp's RPC backend.

    Parameters
    ----------
    devices : str or sequence, optional
        Names split at `,` or `/`, a sequence of names, or devices that are open already. By default the accelerators if
        there are any, else the CPU.
    host : str
        Address or name to listen on, IPv4 or IPv6.
    port : int
        0 picks a free one; `endpoint` tells which.
    threads : int, optional
        Threads of the CPU device for all sessions together; by default half the cores.
    protocols : str or sequence of Protocol
        `auto` (what fits the client), a name such as `8.0`, or several with ports: `auto,7.0@50053`.
    cache_dir : Path, optional
        Keep large tensors here by their hash. All clients must trust each other then.
    graph_timeout : float
        Seconds after which a graph's run is cancelled; 0 means never.
    numa : str, optional
        `distribute` or `isolate`: how the CPU device uses several memory nodes; by default as the system likes.
    hello_seconds, stall_seconds : float
        How long a new client may take for its HELLO, and any client for the next byte inside a message. A session that
        rests between two messages has no deadline.
    trace : bool
        Log a line for each command.
    explain : bool
        Log which dialect a client speaks and what that was inferred from.

    Raises
    ------
    DeviceError
        If a device is not known or cannot be opened.
    OSError
        If an address cannot be listened on or the cache folder cannot be used.
    ValueError
        If a protocol is not known, an open device stands twice, or a time or the port is none.

    Examples
    --------
    >>> with Server(devices="CPU", port=0) as server:
    ...     print(server.endpoint)  # doctest: +SKIP
    127.0.0.1:40123
    """

    def __init__(
        self,
        devices: str | Sequence[str] | Sequence[NativeDevice] | None = None,
        host: str = DEFAULT_HOST,
        port: int = limits.DEFAULT_PORT,
        *,
        threads: int | None = None,
        protocols: str | Sequence[Protocol] = AUTO,
        cache_dir: Path | None = None,
        graph_timeout: float = 0.0,
        numa: str | None = None,
        hello_seconds: float = limits.HELLO_SECONDS,
        stall_seconds: float = limits.STALL_SECONDS,
        trace: bool = False,
        explain: bool = False,
    ) -> None:
        for name, seconds in (("hello_seconds", hello_seconds), ("stall_seconds", stall_seconds)):
            if not _SHORTEST_SECONDS <= seconds <= _LONGEST_SECONDS:
                raise ValueError(f"{name} must be from {_SHORTEST_SECONDS:g} to {_LONGEST_SECONDS:g}, not {seconds}")
        if graph_timeout != 0 and not _SHORTEST_SECONDS <= graph_timeout <= _LONGEST_SECONDS:
            raise ValueError(f"graph_timeout must be 0 or up to {_LONGEST_SECONDS:g} seconds, not {graph_timeout}")
        if not 0 <= port < 1 << 16:
            raise ValueError(f"port must be from 0 to 65535, not {port}")
        self.host = host
        self.devices = _open(devices, threads, graph_timeout, numa)
        self.protocols = parse_protocols(protocols) if isinstance(protocols, str) else list(protocols)
        self.cache = TensorCache(cache_dir) if cache_dir is not None else None
        self._max_graph_bytes = _memory_bytes(self.devices) // limits.GRAPH_SHARE
        self._port = port
        self._trace = trace
        self._explain = explain
        self._offers = Offers()
        self._hello_seconds = hello_seconds
        self._stall_seconds = stall_seconds
        self._listeners: list[_Listener] = []
        self._connections: dict[Connection, threading.Thread] = {}
        # A process that was forked has none of the threads, and shares the sockets.
        self._process = os.getpid()
        # All locks are reentrant: a signal handler may close the server while this very thread holds one.
        self._lock = threading.RLock()
        self._closing = threading.RLock()
        self._told = threading.Condition()
        self._stopping = False
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._acceptor: threading.Thread | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> list[str]:
        """`host:port` of each protocol, in the order given; known once the server is started."""
        return [listener.endpoint for listener in self._listeners]

    @property
    def endpoint(self) -> str:
        """`host:port` of the first protocol."""
        return self.endpoints[0]

    @property
    def n_connections(self) -> int:
        """Clients connected now."""
        with self._lock:
            return len(self._connections)

    def start(self) -> None:
        """Listen and serve in threads of their own, until `close`.

        Raises
        ------
        OSError
            If an address cannot be listened on.
        RuntimeError
            If the server was started or closed before, or made by the process that this one was forked from.
        """
        if self._process != os.getpid():
            raise RuntimeError("the server's devices belong to the process that was forked: make a server in this one")
        with self._closing:
            if self._acceptor is not None or self._stopping:
                raise RuntimeError(f"the server {'was closed' if self._stopping else 'is started already'}")
            try:
                for protocol in self.protocols:
                    port = self._port if protocol.port is None else protocol.port
                    sock = tcp.listen(self.host, port)
                    endpoint = tcp.format_endpoint(self.host, sock.getsockname()[1])
                    self._listeners.append(_Listener(sock, protocol, endpoint))
                self._wake = socket.socketpair()
                acceptor = threading.Thread(target=self._accept_loop, name="ggml-rpc accept", daemon=True)
                acceptor.start()
            except (OSError, RuntimeError):  # a taken port; no thread to be had
                self._close_listeners()
                self._listeners.clear()
                raise
            self._acceptor = acceptor

    def serve_forever(self) -> None:
        """Block until `close` is called from another thread or a signal handler."""
        if self._acceptor is None:
            self.start()
        # Handlers run in the main thread, and a signal that the kernel gave to another one does not wake it.
        with self._told:
            while not self._stopping:
                self._told.wait(0.5)

    def close(self) -> None:
        """Stop listening, end all sessions, cancel what runs and free what clients held.

        Safe to call twice, from several threads and from a signal handler. In a process that was forked it only drops
        that process's copies of the sockets: the server goes on in its own.
        """
        if self._process != os.getpid():
            self._drop()
            return
        with self._told:
            self._stopping = True
            self._told.notify_all()
        with self._closing:
            wake = self._wake
            if wake is not None:
                with contextlib.suppress(OSError):  # a signal handler has closed it meanwhile
                    wake[1].send(b"x")
            if self._acceptor is not None:
                self._acceptor.join()
            with self._lock:
                open_connections = dict(self._connections)
            for connection in open_connections:
                connection.stop()
            until = time.monotonic() + JOIN_SECONDS
            for thread in open_connections.values():
                thread.join(max(0.0, until - time.monotonic()))
            self._close_listeners()
            if wake is not None:
                for end in wake:
                    end.close()
            self._wake = None

    def _drop(self) -> None:
        """Close the descriptors that a forked process got; no lock, which a thread that is not here may have held."""
        self._close_listeners()
        for connection in list(self._connections):
            connection.sock.close()
        for end in self._wake or ():
            end.close()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.sock.close()

    def _accept_loop(self) -> None:
        assert self._wake is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake[0], selectors.EVENT_READ, None)
            for listener in self._listeners:
                listener.sock.setblocking(False)
                selector.register(listener.sock, selectors.EVENT_READ, listener)
            while not self._stopping:
                for key, _ in selector.select():
                    if key.data is not None:
                        self._accept(key.data)

    def _accept(self, listener: _Listener) -> None:
        try:
            sock, address = listener.sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as e:
            log.error("accept on %s failed: %s", listener.endpoint, e.strerror)
            time.sleep(ACCEPT_PAUSE_SECONDS)
            return
        peer = tcp.format_endpoint(address[0], address[1])
        if self.n_connections >= limits.MAX_CONNECTIONS:
            log.warning("client %s refused: %d clients are connected already", peer, limits.MAX_CONNECTIONS)
            sock.close()
            return
        try:
            tcp.configure(sock)
            self._open_session(sock, peer, address[0], listener.protocol)
        except (OSError, RuntimeError, MemoryError) as e:  # a reset by the peer; no thread, no memory: this client only
            log.warning("client %s not served: %s", peer, e)
            sock.close()

    def _open_session(self, sock: socket.socket, peer: str, address: str, protocol: Protocol) -> None:
        connection = Connection(
            sock,
            peer,
            address=address,
            protocol=protocol,
            offers=self._offers,
            devices=self.devices,
            cache=self.cache,
            hello_seconds=self._hello_seconds,
            stall_seconds=self._stall_seconds,
            max_graph_bytes=self._max_graph_bytes,
            trace=self._trace,
            explain=self._explain,
        )
        thread = threading.Thread(target=self._serve, args=(connection,), name=f"ggml-rpc {peer}", daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except (RuntimeError, MemoryError):
            with self._lock:
                del self._connections[connection]
            raise

    def _serve(self, connection: Connection) -> None:
        log.debug("client %s connected", connection.peer)
        try:
            connection.run()
        finally:
            with self._lock:
                del self._connections[connection]


def _memory_bytes(devices: Sequence[NativeDevice]) -> int:
    """Return how much memory the machine has, or a device if that is less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(d.memory()[1] for d in devices)])


def _open(
    devices: str | Sequence[str] | Sequence[NativeDevice] | None,
    threads: int | None,
    graph_timeout: float,
    numa: str | None,
) -> list[NativeDevice]:
    if devices is None:
        names = local.default_names()
    elif isinstance(devices, str):
        names = local.split_names(devices)
    else:
        opened = [d for d in devices if isinstance(d, NativeDevice)]
        if opened:
            if len(opened) != len(devices):
                raise TypeError("devices must be all names or all open devices")
            if len(set(map(id, opened))) < len(opened):
                raise ValueError("an open device stands twice in devices")
            return opened
        names = [str(d) for d in devices]
    return local.open_devices(names, threads=threads, graph_timeout=graph_timeout, numa=numa)
