"""The command ``ggml-rpc run``: let a model continue a text, or talk with it, over local and remote devices."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .arguments import Parser, integer
from .command import Refused, Signals, execute
from .model_options import (
    MAX_COUNT,
    add_context,
    add_model,
    add_sampling,
    context_arguments,
    device_arguments,
    model_path,
    placement_arguments,
    read_text,
    sampling_params,
)
from .report import Console, JsonLines, Report

if TYPE_CHECKING:
    from pathlib import Path

    from ggml_rpc.llm.generate import LLM
    from ggml_rpc.llm.session import Redistribution

PROG = "ggml-rpc run"
DESCRIPTION = "Let a language model continue a text, or talk with it, on this machine and on servers."
EPILOG = """examples:
  ggml-rpc run -m model.gguf                         talk with the model on this machine
  ggml-rpc run -m model.gguf -p "Once upon a time" -n 64 --rpc hostA:50052,hostB:50052
                                                     the model's layers shared out over two servers
  ggml-rpc run -hf ggml-org/gemma-3-270m-it-GGUF -cnv -p "Why is the sky blue?" -st
                                                     fetch a model, ask it one question

The text goes to standard output, all else to standard error. Exit status: 0; 1 if something failed; 2 for a wrong
command line; 130 after Ctrl-C, 143 after SIGTERM. On all of these what was taken on servers is given back.
"""

_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{1,2}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def n_predict(text: str) -> int | None:
    """Read the most tokens of an answer; None for all that fit."""
    value = integer(-1, MAX_COUNT, "number of tokens")(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 tokens are none; -1: as many as fit")
    return None if value < 0 else value


def unescape(text: str) -> str:
    r"""Replace ``\n``, ``\r``, ``\t``, ``\'``, ``\"``, ``\\`` and ``\xNN``; other backslashes stay."""

    def replaced(match: re.Match[str]) -> str:
        what = match[1]
        if what[0] == "x" and len(what) > 1:
            return chr(int(what[1:], 16))
        return _ESCAPED.get(what, match[0])

    return _ESCAPE.sub(replaced, text)


def build_parser() -> Parser:
    """Return the parser of ``ggml-rpc run``."""
    parser = Parser(PROG, DESCRIPTION, EPILOG, usage="%(prog)s -m FILE [-p TEXT] [--rpc HOST:PORT,...] [options]")
    add_model(parser)
    group = parser.add_argument_group("prompt")
    prompt = group.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="text to go on from; with -cnv the first message")
    prompt.add_argument("-f", "--file", metavar="FILE", help="a file with that text; -: standard input")
    add = group.add_argument
    escapes = group.add_mutually_exclusive_group()
    escapes.add_argument(
        "-e", "--escape", action="store_true", default=True, help=r"read \n, \t, \\ and the like in -p, -sys, -r (on)"
    )
    escapes.add_argument("--no-escape", action="store_false", dest="escape", help="take them as they are")
    add("--no-display-prompt", action="store_true", help="do not print the prompt before its continuation")
    group = parser.add_argument_group("conversation")
    add = group.add_argument
    switch = group.add_mutually_exclusive_group()
    switch.add_argument(
        *("-cnv", "--conversation"),
        action="store_true",
        default=None,
        help="talk with the model (on if there is no prompt, the model is made for it, and this is a terminal)",
    )
    switch.add_argument(
        "-no-cnv", "--no-conversation", action="store_false", dest="conversation", help="only continue the prompt"
    )
    add("-st", "--single-turn", action="store_true", help="end after the first answer")
    add("-sys", "--system-prompt", metavar="TEXT", help="what the model is told before the conversation")
    group = parser.add_argument_group("answer")
    add = group.add_argument
    add(
        *("-n", "--predict", "--n-predict"),
        type=n_predict,
        metavar="N",
        help="most tokens of an answer; -1: as many as fit into the context (-1)",
    )
    add(
        *("-r", "--reverse-prompt"),
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer where it comes to this text; may be repeated",
    )
    add("--ignore-eos", action="store_true", help="go on where the model would end")
    add_sampling(parser)
    add_context(parser, n_ctx=4096)
    group = parser.add_argument_group("run")
    add = group.add_argument
    add(
        "--on-loss",
        choices=("error", "redistribute"),
        default="error",
        help="what to do when a server is lost: end, or share its layers out over the devices that are left and go on"
        " (error)",
    )
    add("--no-warmup", action="store_true", help="do not run one token first to set everything up")
    add("--json", action="store_true", help="print an event a line, as JSON: load, placement, token, done, error ...")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of a command line, with the prompt's text in `prompt` and the sampling in `sampling`.

    Raises
    ------
    SystemExit
        With status 2 and one line on standard error if the command line is wrong.
    """
    parser = build_parser()
    options = parser.parse_args(argv)
    given = options.prompt is not None or options.file is not None
    if not given and options.conversation is not True and (options.conversation is False or not sys.stdin.isatty()):
        parser.error("there is no prompt: give -p TEXT or -f FILE, or -cnv to talk with the model")
    chats = options.conversation or (not given and options.conversation is None)
    for value, flag in ((options.system_prompt, "-sys"), (options.single_turn, "-st")):
        if value and not chats:
            parser.error(f"{flag} is for a conversation: add -cnv")
    if "" in options.reverse_prompt:
        parser.error("-r with an empty text would end every answer")
    options.sampling = sampling_params(options, parser)
    if options.escape:
        for name in ("prompt", "system_prompt"):
            if getattr(options, name) is not None:
                setattr(options, name, unescape(getattr(options, name)))
        options.reverse_prompt = [unescape(text) for text in options.reverse_prompt]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc run`` and return its exit status."""
    options = parse(argv)
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(message)s", stream=sys.stderr)
    report: Report = JsonLines(sys.stdout) if options.json else Console(sys.stdout, sys.stderr)
    return execute(PROG, lambda signals: run(options, signals, report), report.error)


def run(options: argparse.Namespace, signals: Signals, report: Report) -> int:
    """Load the model and let it write; raises what stands in the way."""
    if options.file is not None:
        options.prompt = (sys.stdin.read() if options.file == "-" else read_text(options.file)).removesuffix("\n")
    path = model_path(options, report.fetching)
    chats = options.conversation
    if chats is None:
        chats = options.prompt is None
        if chats and not _has_template(path):
            raise Refused(f"{path} has no chat template: give it a text to continue (-p TEXT), or talk anyway (-cnv)")
    with open_llm(path, options, report) as llm:
        report.loaded(llm.model, llm.n_ctx, llm.load_seconds)
        _check_bias(options, llm.model.hparams.n_vocab)
        if not options.no_warmup:
            llm.warm_up()
        if chats:
            from .chat import Chat  # noqa: PLC0415

            Chat(llm, report, signals, options).run()
        else:
            complete(llm, options, signals, report)
    return 0


def open_llm(path: Path, options: argparse.Namespace, report: Report) -> LLM:
    """Return the model, loaded.

    Raises
    ------
    RpcError, Refused
        If that is not possible.
    """
    from ggml_rpc.llm.generate import LLM  # noqa: PLC0415  native modules, which --help does not need

    opened: list[LLM] = []

    def redistributed(what: Redistribution) -> None:
        if opened:  # else it is loaded still; where it lies is told then
            report.redistributed(what, opened[0].model)

    try:
        llm = LLM(
            path,
            **device_arguments(options),
            **placement_arguments(options),
            **context_arguments(options),
            on_loss=options.on_loss,
            progress=report.loading,
            on_redistribution=redistributed,
        )
    except ValueError as error:
        raise Refused(str(error)) from error
    opened.append(llm)
    return llm


def answer_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `LLM.generate` takes."""
    return {
        "max_tokens": options.predict,
        "sampling": options.sampling,
        "stop": options.reverse_prompt,
        "ignore_eos": options.ignore_eos,
    }


def complete(llm: LLM, options: argparse.Namespace, signals: Signals, report: Report) -> None:
    """Continue the prompt."""
    generation = llm.generate(options.prompt, **answer_options(options))
    if not options.no_display_prompt:
        report.prompt(options.prompt)
    for token in generation:
        report.token(token)
        signals.check()
    report.done(generation)


def _check_bias(options: argparse.Namespace, n_vocab: int) -> None:
    for token, _ in options.logit_bias:
        if token >= n_vocab:
            raise Refused(f"--logit-bias names token {token}, but the model's last one is {n_vocab - 1}")


def _has_template(path: Path) -> bool:
    from ggml_rpc.llm.chat import KEY  # noqa: PLC0415
    from ggml_rpc.llm.gguf_file import GgufFile  # noqa: PLC0415

    with GgufFile.open(path) as file:
        return KEY in file.metadata


if __name__ == "__main__":
    sys.exit(main())
