"""What `--proto` takes, and what `auto` announces."""

from __future__ import annotations

import pytest

from ggml_rpc.server.protocols import CANDIDATES, parse_protocols
from ggml_rpc.spec import dialects
from tests.server.stock import accepts


def parsed(text: str) -> list[tuple[str, int | None]]:
    """Return names and ports."""
    return [(p.name, p.port) for p in parse_protocols(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", [("auto", None)]),
        ("auto@50053", [("auto", 50053)]),
        ("8.0", [("8.0.0", None)]),
        ("8.0.0@0", [("8.0.0", 0)]),
        ("8.0@65535", [("8.0.0", 65535)]),
        ("auto,7.0@50053", [("auto", None), ("7.0.0", 50053)]),
        (" auto , 2.0@50053 ", [("auto", None), ("2.0.0", 50053)]),
        ("ik", [("ik-3.5.2", None)]),
        ("ik@50052,ik-5.5@50053", [("ik-3.5.2", 50052), ("ik-5.5.5", 50053)]),
        ("3.0.0@2025-10-04", [("3.0.0@2025-10-04", None)]),
        ("3.0.0@2025-10-04@50053", [("3.0.0@2025-10-04", 50053)]),
        ("ik-3.5.2@2026-05-19@1,3.6.0@2026-01-19@2", [("ik-3.5.2@2026-05-19", 1), ("3.6.0@2026-01-19", 2)]),
        ("8.0@0,7.0@0", [("8.0.0", 0), ("7.0.0", 0)]),
    ],
)
def test_accepted(text: str, expected: list[tuple[str, int | None]]) -> None:
    assert parsed(text) == expected


@pytest.mark.parametrize("name", sorted(dialects.ALL_NAMES))
def test_every_name_alone_and_with_a_port(name: str) -> None:
    dialect = dialects.find(name)
    assert parsed(name) == [(dialect.name, None)]
    assert parsed(f"{name}@50060") == [(dialect.name, 50060)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "unknown protocol ''"),
        ("9.9", "9.9"),
        ("AUTO", "AUTO"),
        ("auto,", "''"),
        ("9.9@50052", "9.9"),
        ("@50052", "50052"),
        ("auto@", "no port"),
        ("auto@x", "'x' is no port"),
        ("auto@65536", "'65536' is no port"),
        ("auto@-1", "'-1' is no port"),
        ("8.0@2025-10-04", "no port"),
        ("3.0.0@2025-10-05", "no port"),
        ("3.0.0@2025-10-04@x", "'x' is no port"),
        ("8.0,7.0", "port of its own"),
        ("8.0@50053,7.0@50053", "port of its own"),
        ("auto,auto", "port of its own"),
    ],
)
def test_refused(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_protocols(text)


def test_unknown_names_are_answered_by_those_known() -> None:
    with pytest.raises(ValueError, match=r"auto.*8\.0\.0") as e:
        parse_protocols("llama")
    assert "ik-5.5.5" in str(e.value)


def test_auto_covers_every_dialect_once() -> None:
    """A client of each table accepts exactly one candidate that holds its table."""
    for d in dialects.DIALECTS:
        holding = [a for a in CANDIDATES[d.hello_request] if d in a.tables]
        assert [accepts(d, a.dialect.announce) for a in holding] == [True], d.name


@pytest.mark.parametrize("length", sorted(CANDIDATES))
def test_tables_of_one_announcement_have_the_same_replies(length: int) -> None:
    for a in CANDIDATES[length]:
        for t in a.tables:
            common = a.dialect.commands.keys() & t.commands.keys()
            for command in common:
                assert t.reply_kind(command) is a.dialect.reply_kind(command), (t.name, command.name)
                assert t.reply_size(command) == a.dialect.reply_size(command), (t.name, command.name)
            assert t.hello_reply == a.dialect.hello_reply


def test_a_named_protocol_takes_only_its_own_hello() -> None:
    (named,) = parse_protocols("3.0.0")
    assert [a.dialect.name for a in named.announcements(0)] == ["3.0.0"]
    assert named.announcements(24) == ()
    (auto,) = parse_protocols("auto")
    assert auto.announcements(7) == ()
    assert [a.dialect.name for a in auto.announcements(24)] == ["8.0.0", "7.0.0", "6.0.0", "5.0.0", "4.0.0"]
