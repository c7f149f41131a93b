"""Which protocol number to offer a client whose number cannot be known.

A client names no version, and leaves when it does not like the server's. So the server remembers, for each address and
length of HELLO, what was offered and what worked: a client that left right after the answer is offered the next
candidate when it comes again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .protocols import Announcement

# An address is forgotten after a day without a connection; of more than so many the oldest goes first.
EXPIRY_SECONDS = 24 * 3600.0
MAX_ADDRESSES = 4096


@dataclass
class _Client:
    """What is known of the clients at one address that greet alike."""

    worked: list[Announcement] = field(default_factory=list)  # what clients stayed with, the last first
    refused: list[Announcement] = field(default_factory=list)  # since the last that stayed, in this order
    instead: Announcement | None = None  # to offer next, because the last one was accepted but did not fit
    live: int = 0  # sessions that stayed and are still there
    seen: float = 0.0


@dataclass(frozen=True)
class Offer:
    """One candidate, offered to one connection.

    Parameters
    ----------
    announcement : Announcement
        What to announce.
    reason : str
        Why this one, for the log.
    key : tuple of str and int
        The address, and the bytes of its HELLO.
    """

    announcement: Announcement
    reason: str
    key: tuple[str, int]


class Offers:
    """Remember what the clients of each address accepted. Safe to use from several threads.

    Parameters
    ----------
    clock : callable
        Seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[tuple[str, int], _Client] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, address: str, hello_bytes: int, candidates: Sequence[Announcement]) -> Offer:
        """Return what to offer the client that has just said HELLO.

        Parameters
        ----------
        address : str
            Where it comes from, without its port.
        hello_bytes : int
            Payload bytes of its HELLO.
        candidates : sequence of Announcement
            At least one, in the order to try.
        """
        key = (address, hello_bytes)
        with self._lock:
            client = self._client(key)
            order = [*client.worked, *(c for c in candidates if c not in client.worked)]
            left = [c for c in order if c not in client.refused]
            if not left:  # all were refused: begin again
                client.refused.clear()
                left = order
            refused = ", ".join(c.dialect.name for c in client.refused)
            if client.instead is not None and not client.live:
                return Offer(client.instead, f"{order[0].dialect.name} did not fit", key)
            if client.live:
                reason = "a session of this address speaks it"
            elif refused:
                reason = f"a client of this address left after {refused}"
            elif client.worked:
                reason = "it worked for this address before"
            else:
                reason = "the first candidate"
            return Offer(left[0], reason, key)

    def stayed(self, offer: Offer) -> None:
        """Note that the client sent a command after the answer: it accepted. Its session lives until `ended`."""
        with self._lock:
            client = self._client(offer.key)
            if offer.announcement in client.worked:
                client.worked.remove(offer.announcement)
            client.worked.insert(0, offer.announcement)
            client.refused.clear()
            client.instead = None
            client.live += 1

    def ended(self, offer: Offer) -> None:
        """Note the end of a session that had stayed."""
        with self._lock:
            self._client(offer.key).live -= 1

    def misfit(self, offer: Offer, candidates: Sequence[Announcement]) -> Announcement | None:
        """Note that a session broke the rules of what it had accepted; return what the next one is offered instead.

        A client accepts earlier minor numbers than its own too, but may speak in another way: where there is a later
        candidate, it may be that one.
        """
        own = offer.announcement.dialect.announce
        later = [c for c in candidates if own[0] == c.dialect.announce[0] and own[:2] < c.dialect.announce[:2]]
        if not later:
            return None
        with self._lock:
            self._client(offer.key).instead = later[0]
        return later[0]

    def left(self, offer: Offer, candidates: Sequence[Announcement]) -> Announcement | None:
        """Note that the client hung up right after the answer; return what the next one is offered, if that changes.

        While another session from the address lives, nothing changes: clients there go on being offered what it speaks.
        """
        with self._lock:
            client = self._client(offer.key)
            if client.live > 0 or offer.announcement in client.refused:
                return None
            client.refused.append(offer.announcement)
            if offer.announcement is client.instead:
                client.instead = None
        return self.choose(*offer.key, candidates).announcement

    def _client(self, key: tuple[str, int]) -> _Client:
        now = self._clock()
        for _ in range(len(self._clients)):
            known = next(iter(self._clients))  # the longest unseen
            client = self._clients[known]
            full = len(self._clients) >= MAX_ADDRESSES and key not in self._clients
            if now - client.seen <= EXPIRY_SECONDS and not full:
                break
            if client.live:
                client.seen = now
                self._clients.move_to_end(known)
            else:
                del self._clients[known]
        client = self._clients.setdefault(key, _Client())
        client.seen = now
        self._clients.move_to_end(key)
        return client
