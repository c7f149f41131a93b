"""Time what another process asks for, so that it can take several clients and servers in turns."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llama import Context, Log, Model


def run(args: argparse.Namespace, emit: Callable[..., None], _log: Log) -> None:
    """Do what lines of standard input ask for, until it ends, and answer each with the seconds it took.

    ``load`` loads the model and frees it. ``open`` loads it and makes a context, for what follows: ``decode B N``
    decodes N batches of B random tokens one after another, ``clear`` forgets them.
    """
    model = context = tokens = None
    for line in sys.stdin:
        verb, *numbers = line.split()
        batch, count = map(int, numbers) if verb == "decode" else (0, 0)
        start = time.perf_counter()
        if verb == "load":
            Model(args.model, args.rpc).close()
        elif verb == "open":
            model = Model(args.model, args.rpc)
            context = Context(model, n_ctx=args.n_ctx, n_batch=args.n_batch, flash=args.flash)
            tokens = np.random.default_rng(1).integers(3, model.n_vocab, args.n_batch).tolist()
        elif context is None or tokens is None:
            raise ValueError(f"{verb!r} before open")
        elif verb == "clear":
            context.clear()
        else:
            for at in range(count):
                # Other tokens in each batch: a mixture of experts must not always choose the same.
                context.decode(tokens[:batch] if batch > 1 else [tokens[at % args.n_batch]])
        emit(verb, seconds=time.perf_counter() - start)
    if model is not None and context is not None:
        context.close()
        model.close()


def add_arguments(parser: Any) -> None:
    """Declare the options of ``timing``."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--rpc", action="append", default=[], help="an endpoint; give it once a server")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--n-batch", type=int, default=512)
    parser.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
