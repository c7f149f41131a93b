"""The command ``ggml-rpc perplexity``: how well a model predicts a text, counted as llama-perplexity does."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arguments import Parser, integer
from .command import Refused, Signals, execute
from .model_options import (
    MAX_COUNT,
    add_context,
    add_model,
    context_arguments,
    device_arguments,
    model_path,
    placement_arguments,
    read_text,
)
from .report import Console, JsonLines, Report

if TYPE_CHECKING:
    from ggml_rpc.llm.perplexity import Score

PROG = "ggml-rpc perplexity"
DESCRIPTION = """Measure how well a model predicts a text. The text is cut into chunks of --ctx-size tokens; in each the
second half is predicted. A perplexity of 1 would be certainty; among models with the same tokens lower is better."""


def build_parser() -> Parser:
    """Return the parser of ``ggml-rpc perplexity``."""
    parser = Parser(PROG, DESCRIPTION, usage="%(prog)s -m FILE -f TEXT [--rpc HOST:PORT,...] [options]")
    group = parser.add_argument_group("text")
    group.add_argument("-f", "--file", required=True, metavar="FILE", help="the text")
    group.add_argument(
        "--chunks",
        type=integer(-1, MAX_COUNT, "number of chunks"),
        default=-1,
        metavar="N",
        help="most chunks to read; -1: all (-1)",
    )
    group.add_argument("--json", action="store_true", help="print an event a line, as JSON")
    add_model(parser)
    add_context(parser, n_ctx=512)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc perplexity`` and return its exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.chunks == 0:
        parser.error("argument --chunks: 0 chunks are none; -1: all")
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(message)s", stream=sys.stderr)
    report: Report = JsonLines(sys.stdout) if options.json else Console(sys.stdout, sys.stderr)
    return execute(PROG, lambda signals: run(options, signals, report), report.error)


def run(options: argparse.Namespace, signals: Signals, report: Report) -> int:
    """Load the model and score the text; raises what stands in the way."""
    text = read_text(options.file)
    path = model_path(options, report.fetching)
    # Native modules, which --help does not need.
    from ggml_rpc.llm.devices import open_devices  # noqa: PLC0415
    from ggml_rpc.llm.model import Model  # noqa: PLC0415
    from ggml_rpc.llm.perplexity import perplexity  # noqa: PLC0415
    from ggml_rpc.llm.sizing import ContextSettings  # noqa: PLC0415

    begin = time.perf_counter()
    try:
        settings = ContextSettings(**context_arguments(options))
        devices = open_devices(**device_arguments(options))
    except ValueError as error:
        raise Refused(str(error)) from error
    with (
        devices,
        Model.open(path, devices, settings=settings, progress=report.loading, **placement_arguments(options)) as model,
    ):
        n_ctx = options.ctx_size or model.hparams.n_ctx_train
        report.loaded(model, n_ctx, time.perf_counter() - begin)
        begin = time.perf_counter()
        scores = perplexity(model, text, n_ctx=n_ctx, n_windows=None if options.chunks < 0 else options.chunks)
        for score in scores:
            signals.check()
            spent = time.perf_counter() - begin
            if options.json:
                _event("chunk", score, spent)
                continue
            if score.window == 0:
                left = spent * (score.n_windows - 1)
                report.note(f"{score.n_windows} chunks of {n_ctx} tokens, about {left:.0f} s left")
            print(f"[{score.window + 1}]{score.perplexity:.4f},", end="", flush=True)
        if options.json:
            _event("done", score, spent)
        else:
            print(f"\nFinal estimate: PPL = {score.perplexity:.4f} +/- {score.error:.5f}")
            report.note(f"{score.n_tokens} tokens scored in {spent:.1f} s")
    return 0


def _event(name: str, score: Score, spent: float) -> None:
    fields = {
        "chunk": score.window + 1,
        "chunks": score.n_windows,
        "tokens": score.n_tokens,
        "perplexity": score.perplexity,
        "error": score.error,
        "seconds": spent,
    }
    print(json.dumps({"event": name, **fields}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
