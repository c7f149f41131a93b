"""What the parsers of all commands share: one line for an error, and values that are checked as they are read."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

T = TypeVar("T")
MAX_THREADS = 1024  # the CPU device's own bound


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and takes no abbreviations."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, *, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=_Help,
            allow_abbrev=False,
            usage=usage,
        )

    def error(self, message: str) -> NoReturn:
        """Print one line, not the whole usage, and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Name an option's value once, however many names the option has."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def integer(low: int, high: int, what: str) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` to `high`; `what` names them in the error."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text, flags=re.ASCII) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what} ({low} to {high})")
        return int(text)

    return read


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value


def seconds(text: str) -> float:
    """Read a time in seconds, more than none."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds above 0")
    return value


def choice(names: dict[str, str], what: str) -> Callable[[str], str]:
    """Return a reader of words, in any case, that gives what `names` says for each."""

    def read(text: str) -> str:
        found = names.get(text.lower())
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: {', '.join(dict.fromkeys(names))}")
        return found

    return read


def several(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a reader of values separated by commas."""

    def read_all(text: str) -> list[T]:
        return [read(part.strip()) for part in text.split(",")]

    return read_all
