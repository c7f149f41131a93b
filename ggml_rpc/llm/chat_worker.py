"""Render one chat template in a process of its own: ``main`` reads a job from standard input and prints the result.

A template is a program from a model file. Jinja2's sandbox keeps it from Python's objects, but not from loops in loops
or from texts that double: those end with this process, whose memory and time are limited.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 1 << 24  # characters of a result
MAX_MEMORY = 1 << 30  # bytes of address space


class RefusedError(Exception):
    """Carry what a template says against its messages."""


class _Generation(Extension):
    """Accept the tag that marks what the model has written; it changes nothing here."""

    tags = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise RefusedError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON without the escapes for HTML that Jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, variables: dict[str, Any]) -> str:
    """Return what a template makes of its variables.

    Raises
    ------
    RefusedError
        If the template calls ``raise_exception``.
    jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError
        If it is faulty.
    OverflowError
        If the text gets too long.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _json
    pieces = []
    size = 0
    for piece in environment.from_string(template).generate(**variables):
        size += len(piece)
        if size > MAX_TEXT:
            raise OverflowError(f"it makes more than {MAX_TEXT} characters")
        pieces.append(piece)
    return "".join(pieces)


def main() -> int:
    """Do the job on standard input."""
    job = json.load(sys.stdin)
    seconds = max(1, round(job["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        result = {"text": render(job["template"], job["variables"])}
    except RefusedError as error:
        result = {"refused": str(error)}
    except (MemoryError, RecursionError):
        result = {"failed": "it needs too much memory"}
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        result = {"failed": str(error) or type(error).__name__}
    json.dump(result, sys.stdout)
    return 0
