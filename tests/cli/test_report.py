"""What a model file or a model may write reaches a terminal as text only."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from ggml_rpc.cli.report import Console, describe
from ggml_rpc.llm.results import Token

STEERING = "\x1b]52;c;aGk=\x07 \x9b2J \x7f\x00"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def token(text: str) -> Token:
    """Return a token of which only the text matters here."""
    made: Any = SimpleNamespace(text=text)
    return made  # type: ignore[no-any-return]


def test_an_answer_cannot_steer_a_terminal() -> None:
    out = Terminal()
    console = Console(out, io.StringIO())
    console.prompt("tab\tand\r\nlines\n")
    console.token(token(f"a{STEERING}é\n"))
    assert out.getvalue() == "tab\tand\r\nlines\na\ufffd]52;c;aGk=\ufffd \ufffd2J \ufffd\ufffdé\n"


def test_elsewhere_an_answer_goes_as_it_is() -> None:
    out = io.StringIO()
    Console(out, io.StringIO()).token(token(STEERING))
    assert out.getvalue() == STEERING


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("128x17B", "llama 128x17B Q8_0"),
        (None, "llama 64 Q8_0"),
        (7, "llama 64 Q8_0"),
        ("", "llama 64 Q8_0"),
        (STEERING, "llama 64 Q8_0"),
        ("two\nlines", "llama 64 Q8_0"),
        ("B" * 33, "llama 64 Q8_0"),
    ],
)
def test_the_size_that_a_file_names_itself_by(label: object, name: str) -> None:
    tensor = SimpleNamespace(ne=(32, 2, 1, 1), type="Q8_0", nbytes=68)
    metadata = {} if label is None else {"general.size_label": label}
    file = SimpleNamespace(tensors={"t": tensor}, metadata=metadata)
    model: Any = SimpleNamespace(file=file, architecture=SimpleNamespace(name="llama"))
    assert describe(model).name == name
