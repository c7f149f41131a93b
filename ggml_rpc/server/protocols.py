"""What a port announces: one protocol, or by `auto` the one that fits the client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ggml_rpc.spec import dialects
from ggml_rpc.spec.dialects import Dialect

AUTO = "auto"


@dataclass(frozen=True)
class Announcement:
    """A version number, and the tables that a client which accepts it may speak.

    Parameters
    ----------
    dialect : Dialect
        Whose number is announced; its name is what `--proto` takes.
    tables : tuple of Dialect
        All tables of the number and of later ones that its clients accept too, the newest first. Their replies have
        the same sizes, so that it does not matter for them which it is.
    """

    dialect: Dialect
    tables: tuple[Dialect, ...]


# What is tried by `auto`, for each length of HELLO: first what is in use most. A client accepts a server of its own
# major number and of no later minor one than its own.
_TRIED = {
    24: ("8.0.0", "7.0.0", "6.0.0", "5.0.0", "4.0.0"),
    0: ("3.5.0", "3.0.0", "ik-5.5.5", "2.0.0"),
}


def _announcements(names: Iterable[str]) -> tuple[Announcement, ...]:
    announced = [dialects.find(name) for name in names]

    def belongs(table: Dialect) -> Dialect | None:
        """Return which of `announced` a client of this table is to be offered: the latest that it accepts."""
        own = table.announce[:2]
        fits = [a for a in announced if a.announce[0] == own[0] and a.announce[:2] <= own]
        return max(fits, key=lambda a: a.announce, default=None)

    out = []
    for a in announced:
        tables = [t for t in dialects.DIALECTS if t.hello_request == a.hello_request and belongs(t) is a]
        # The registry lists llama.cpp before ik_llama.cpp and old before new.
        newest_first = [t for t in reversed(tables) if not t.ik_meaning] + [t for t in reversed(tables) if t.ik_meaning]
        out.append(Announcement(a, tuple(newest_first)))
    return tuple(out)


CANDIDATES: dict[int, tuple[Announcement, ...]] = {length: _announcements(names) for length, names in _TRIED.items()}
"""Payload bytes of HELLO -> what `auto` announces, in this order."""


@dataclass(frozen=True)
class Protocol:
    """What to speak and the port to speak it on.

    Parameters
    ----------
    dialect : Dialect, optional
        What is announced and understood; None finds it out (`auto`).
    port : int, optional
        Its own port; None for the server's.
    """

    dialect: Dialect | None
    port: int | None = None

    @property
    def name(self) -> str:
        """Its name as `--proto` takes it."""
        return AUTO if self.dialect is None else self.dialect.name

    def announcements(self, hello_bytes: int) -> tuple[Announcement, ...]:
        """Return what a client whose HELLO has so many bytes of payload may be offered; nothing if none fits."""
        if self.dialect is None:
            return CANDIDATES.get(hello_bytes, ())
        if self.dialect.hello_request != hello_bytes:
            return ()
        return (Announcement(self.dialect, (self.dialect,)),)


def _find(text: str) -> Dialect | None:
    return None if text == AUTO else dialects.find(text)


def _protocol(text: str) -> Protocol:
    """Parse `NAME` or `NAME@PORT`. Some names hold an `@` themselves."""
    name, at, port = text.rpartition("@")
    try:
        if not at or (text in dialects.ALL_NAMES and not port.isdecimal()):
            return Protocol(_find(text))
        dialect = _find(name)
    except KeyError:
        known = ", ".join((AUTO, *dialects.NAMES))
        raise ValueError(f"unknown protocol {text!r}; known are {known}") from None
    if not (port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise ValueError(f"protocol {text!r}: {port!r} is no port")
    return Protocol(dialect, int(port))


def parse_protocols(text: str) -> list[Protocol]:
    """Parse `auto`, `8.0` or a list such as `auto,7.0@50053`.

    Raises
    ------
    ValueError
        If a protocol is not known, a port is not a number, or two of them would share a port.
    """
    out = [_protocol(part.strip()) for part in text.split(",")]
    ports = [p.port for p in out if p.port != 0]
    if len(set(ports)) != len(ports):
        raise ValueError(f"protocols {text!r}: each needs a port of its own, as in 8.0,7.0@50053")
    return out
