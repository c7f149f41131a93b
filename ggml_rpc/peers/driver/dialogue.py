"""Let another process decide what is decoded next, and hand it the logits through files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llama import Context, Log, Model


def run(args: argparse.Namespace, emit: Callable[..., None], _log: Log) -> None:
    """Hold a context for each run and decode what lines of standard input ask for, until it ends.

    A run is ``{"label": ..., "rpc": [...], "flash": "on"}``, a line
    ``{"label": ..., "clear": true, "tokens": [...], "out": "file.npy"}``: the file receives a float32 row for every
    token. What is asked with ``clear`` begins anew. Answers come in order, one a line.
    """
    models: dict[tuple[str, ...], Model] = {}
    contexts: dict[str, Context] = {}
    for run in json.loads(args.runs):
        servers = tuple(run["rpc"])
        if servers not in models:
            models[servers] = Model(args.model, servers)
        contexts[run["label"]] = Context(
            models[servers], n_ctx=args.n_ctx, n_batch=args.n_batch, flash=run["flash"], threads=args.threads
        )
    emit("ready", n_vocab=next(iter(models.values())).n_vocab)
    for line in sys.stdin:
        asked = json.loads(line)
        context = contexts[asked["label"]]
        if asked["clear"]:
            context.clear()
        np.save(asked["out"], context.decode(asked["tokens"], every=True))
        emit("rows", out=asked["out"])
    for context in contexts.values():
        context.close()
    for model in models.values():
        model.close()


def add_arguments(parser: Any) -> None:
    """Declare the options of ``dialogue``."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--threads", type=int, default=2, help="of the local CPU device")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--n-batch", type=int, default=128)
