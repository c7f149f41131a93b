"""One client's session: the decisions that its native half hands up."""

from __future__ import annotations

import logging
import secrets
import socket
import struct
from collections.abc import Sequence
from functools import cache

from ggml_rpc.devices import NativeDevice
from ggml_rpc.errors import ConnectionLost, OutOfMemory, ProtocolError, RpcError
from ggml_rpc.spec import limits
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.transport import tcp
from ggml_rpc.wire._codec import Codec

from ._session import Event, Session
from .cache import TensorCache
from .offers import Offer, Offers
from .protocols import Protocol

log = logging.getLogger(__name__)


@cache
def _codec(dialect: Dialect) -> Codec:
    return Codec(dialect)


class Connection:
    """Serve one client until it leaves.

    Parameters
    ----------
    sock : socket.socket
        Connected and configured; closed at the end.
    peer : str
        The client's address for log lines.
    address : str
        Where it comes from, without the port.
    protocol : Protocol
        What to announce.
    offers : Offers
        What earlier clients accepted.
    devices : sequence of NativeDevice
        What the client sees.
    cache : TensorCache, optional
        Where tensors are kept.
    hello_seconds, stall_seconds : float
        Limits for the HELLO as a whole, and for each further byte inside a message.
    max_graph_bytes : int
        What graphs of all sessions of the process may take together.
    trace : bool
        Log a line for each command.
    explain : bool
        Log as information, not only for debugging, which dialect was inferred from what.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        *,
        address: str,
        protocol: Protocol,
        offers: Offers,
        devices: Sequence[NativeDevice],
        cache: TensorCache | None = None,
        hello_seconds: float = limits.HELLO_SECONDS,
        stall_seconds: float = limits.STALL_SECONDS,
        max_graph_bytes: int = limits.MAX_TENSOR_BYTES,
        trace: bool = False,
        explain: bool = False,
    ) -> None:
        tcp.set_stall_time(sock, min(hello_seconds, stall_seconds))
        self.stall_seconds = stall_seconds
        self.sock = sock
        self.peer = peer
        self.address = address
        self.cache = cache
        self.protocol = protocol
        self.offers = offers
        self.offer: Offer | None = None
        self.stayed = False
        self._explain_level = logging.INFO if explain else logging.DEBUG
        self.session = Session(
            sock.fileno(),
            devices,
            hello_seconds=hello_seconds,
            max_graph_bytes=max_graph_bytes,
            cache=cache is not None,
            trace=self._trace if trace else None,
            note=self._note if log.isEnabledFor(self._explain_level) else None,
        )

    def _trace(self, line: str) -> None:
        log.info("client %s: %s", self.peer, line)

    def _note(self, line: str) -> None:
        log.log(self._explain_level, "client %s: %s", self.peer, line)

    def stop(self) -> None:
        """End the session from another thread: what it waits for fails at once."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            log.debug("client %s had left already", self.peer)

    def run(self) -> None:
        """Serve until the client leaves or breaks a rule; then free all it held."""
        try:
            while True:
                self._handle(self.session.serve())
        except ConnectionLost as e:
            log.debug("client %s left: %s", self.peer, e)
            if self.offer is not None and not self.stayed:
                self._left(self.offer)
        except RpcError as e:
            log.warning("client %s: connection closed: %s: %s", self.peer, type(e).__name__, e)
            if self.offer is not None and self.stayed:
                self._misfit(self.offer)
        finally:
            self.session.close()
            self.sock.close()
            if self.offer is not None and self.stayed:
                self.offers.ended(self.offer)

    def _handle(self, event: Event) -> None:
        session = self.session
        if event is Event.HELLO:
            self._hello(len(session.payload))
        elif event is Event.FIRST_COMMAND:
            assert self.offer is not None
            self.stayed = True
            self.offers.stayed(self.offer)
        elif event is Event.ALLOC_BUFFER:
            self._allocate()
        elif event is Event.FREE_BUFFER:
            session.release()
            session.done()
        elif event is Event.DEVICE_MEMORY:
            session.reply(struct.pack("<QQ", *session.device.memory()))
        elif event is Event.TENSOR_HASH:
            hit = self.cache is not None and self.cache.load(session)
            session.reply(bytes([hit]))
        elif event is Event.STORE_TENSOR:
            assert self.cache is not None
            self.cache.store(session)
        elif event is Event.COMM:
            self._comm()

    def _hello(self, length: int) -> None:
        candidates = self.protocol.announcements(length)
        if not candidates:
            raise ProtocolError(
                f"HELLO: a payload of {length} bytes does not fit {self.protocol.name}: 24 have llama.cpp from 4.0.0 "
                "on, 0 all before and ik_llama.cpp"
            )
        tcp.set_stall_time(self.sock, self.stall_seconds)
        announcement = candidates[0]
        if len(candidates) > 1:
            self.offer = self.offers.choose(self.address, length, candidates)
            announcement = self.offer.announcement
            self._note(f"HELLO of {length} bytes: announcing {announcement.dialect.name}, {self.offer.reason}")
        self.session.choose([_codec(t) for t in announcement.tables], report=self.offer is not None)
        version = bytes(announcement.dialect.announce)
        self.session.reply(version.ljust(announcement.dialect.hello_reply, b"\0"))

    def _misfit(self, offer: Offer) -> None:
        following = self.offers.misfit(offer, self.protocol.announcements(offer.key[1]))
        if following is not None:
            log.warning(
                "a client at %s may speak a later protocol than %s; offering %s next",
                self.address,
                offer.announcement.dialect.name,
                following.dialect.name,
            )

    def _left(self, offer: Offer) -> None:
        following = self.offers.left(offer, self.protocol.announcements(offer.key[1]))
        if following is not None:
            log.warning(
                "a client at %s left after we announced %s; offering %s next; to fix it use --proto %s",
                self.address,
                offer.announcement.dialect.name,
                following.dialect.name,
                following.dialect.name,
            )

    def _allocate(self) -> None:
        handle = secrets.randbits(64) | 1
        try:
            granted = self.session.allocate(handle)
        except OutOfMemory as e:
            log.warning("client %s: %s", self.peer, e)
            handle = granted = 0
        self.session.reply(struct.pack("<QQ", handle, granted))

    def _comm(self) -> None:
        # Servers that talk to each other at a client's wish: declined; the client then adds up the tensors itself.
        command = self.session.command
        if command is Command.COMM_INIT:
            self.session.reply(b"\0")
        elif command is Command.COMM_ALLREDUCE:
            raise ProtocolError("COMM_ALLREDUCE: there is no communicator")
        else:
            self.session.done()
