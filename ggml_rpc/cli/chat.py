"""A conversation with a model: on a terminal, or with messages from a pipe, one a line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ggml_rpc.errors import ContextError, ModelError

from .command import Signals
from .report import Console, Report

if TYPE_CHECKING:
    from ggml_rpc.llm.generate import LLM

HELP = """/exit   end (so does Ctrl-D)
/clear  forget the conversation
/regen  another answer to the last message
/help   show this
A backslash at the end of a line continues the message on the next; Ctrl-C stops an answer."""


class Chat:
    """Messages in turn.

    Parameters
    ----------
    llm : LLM
        The model.
    report : Report
        Takes the answers.
    signals : Signals
        On a terminal, SIGINT stops an answer.
    options : Namespace
        Of ``ggml-rpc run``.
    read : callable, optional
        Return the next line, given what to ask for it with; None at the end. By default from standard input.
    """

    def __init__(
        self,
        llm: LLM,
        report: Report,
        signals: Signals,
        options: argparse.Namespace,
        read: Callable[[str], str | None] | None = None,
    ) -> None:
        self._llm = llm
        self._report = report
        self._signals = signals
        self._options = options
        self._on_terminal = sys.stdin.isatty()
        self._read = read or (read_terminal if self._on_terminal else read_pipe)
        self._again = 0
        self.messages: list[dict[str, str]] = []
        self._clear()

    def run(self) -> None:
        """Talk until the other side has had enough."""
        if self._llm.template.note is not None:
            self._report.note(self._llm.template.note)
        if self._on_terminal and isinstance(self._report, Console):
            self._report.brief = True
            self._report.note(f"{HELP}\n")
        text = self._options.prompt
        while True:
            if text is None:
                text = self._message()
            if text is None or text.strip() == "/exit":
                return
            if not self._command(text):
                self._say(text)
                if self._options.single_turn:
                    return
            text = None

    def _message(self) -> str | None:
        """Return the next message; None at the end."""
        lines: list[str] = []
        while True:
            line = self._read(". " if lines else "> ")
            if line is None:
                return None
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                text = "\n".join(lines)
                if text.strip():
                    return text
                lines = []

    def _command(self, text: str) -> bool:
        """Do what a message asks for if it is a command."""
        word = text.strip()
        if word == "/clear":
            self._clear()
            self._report.note("the conversation is forgotten")
        elif word == "/help":
            self._report.note(HELP)
        elif word == "/regen":
            self._regenerate()
        else:
            return False
        return True

    def _clear(self) -> None:
        system = self._options.system_prompt
        self.messages = [{"role": "system", "content": system}] if system else []

    def _regenerate(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self._report.note("there is no answer yet")
            return
        self.messages.pop()
        self._again += 1
        self._answer()

    def _say(self, text: str) -> None:
        self._again = 0
        self.messages.append({"role": "user", "content": text})
        try:
            self._answer()
        except (ContextError, ModelError) as error:
            # It does not fit, or the template does not take it: on a terminal there is somebody to do better.
            if not self._on_terminal:
                raise
            self.messages.pop()
            self._report.note(f"{error}\n/clear makes room; the message is forgotten")

    def _answer(self) -> None:
        options = self._options
        sampling = options.sampling
        if self._again and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + self._again) % 2**64)
        generation = self._llm.chat(
            self.messages,
            max_tokens=options.predict,
            sampling=sampling,
            stop=options.reverse_prompt,
            ignore_eos=options.ignore_eos,
        )
        if self._on_terminal:
            self._signals.cancel = generation.cancel
        try:
            for token in generation:
                self._report.token(token)
                self._signals.check()
        finally:
            self._signals.cancel = None
        self.messages.append({"role": "assistant", "content": generation.text})
        self._report.done(generation)
        if generation.reason == "length" and len(generation.prompt) + len(generation.tokens) > self._llm.n_ctx:
            self._report.note("the context is full: /clear it, or start again with a larger one (-c)")


def read_terminal(ask: str) -> str | None:
    """Read a line from the terminal, with history and editing; None at its end."""
    import readline  # noqa: PLC0415, F401  makes `input` edit

    if not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb" and sys.stdout.isatty():
        # The marks tell readline what takes no room on the line.
        ask = f"\001\033[1;32m\002{ask}\001\033[0m\002"
    try:
        return input(ask)
    except EOFError:
        print(flush=True)
        return None
    except KeyboardInterrupt:
        print(flush=True)
        raise


def read_pipe(ask: str) -> str | None:
    """Read a line from standard input; None at its end."""
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None
