"""Run encoders, alone or before a decoder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llama import Context, Log, Model, ffi, lib
from numpy.typing import NDArray


def run(args: argparse.Namespace, emit: Callable[..., None], log: Log) -> None:
    """Let the encoder read tokens, and store its embeddings, or the logits of the decoder behind it.

    The file of jobs is a JSON list of ``{"read": [...], "tokens": [...], "batches": [...], "out": "file.npy"}``: the
    encoder reads the first at once. Without further tokens ``out`` receives a row of its embedding for each; else the
    decoder takes them in batches of these sizes, and a row of logits for each is stored.
    """
    model = Model(args.model, args.rpc, repack=args.repack)
    context = Context(model, n_ctx=args.n_ctx, flash=args.flash, cache_type=args.cache_type)
    emit("loaded", layers=log.layers(), devices=model.devices)
    for job in json.loads(Path(args.jobs).read_text()):
        context.clear()
        lib.llama_set_embeddings(context.pointer, not job["tokens"])
        rows = [_encode(context, job["read"])]
        if job["tokens"]:
            ends = np.cumsum(job["batches"])
            tokens = [job["tokens"][end - size : end] for end, size in zip(ends, job["batches"], strict=True)]
            rows = [context.decode(batch, every=True).copy() for batch in tokens]
        np.save(job["out"], np.concatenate(rows))
        emit("job", out=job["out"], rows=sum(map(len, rows)))
    context.close()
    model.close()


def _encode(context: Context, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return a row of embeddings for each token, if the context keeps any."""
    ids = ffi.new("llama_token[]", list(tokens))
    status = lib.llama_encode(context.pointer, lib.llama_batch_get_one(ids, len(tokens)))
    if status != 0:
        raise RuntimeError(f"llama_encode returned {status}")
    size = int(lib.llama_model_n_embd(context.model.pointer))
    data = lib.llama_get_embeddings(context.pointer)  # waits for the result
    if data == ffi.NULL:
        return np.empty((0, size), np.float32)
    view = np.frombuffer(ffi.buffer(data, len(tokens) * size * 4), np.float32)
    return np.array(view, np.float32).reshape(len(tokens), size)


def add_arguments(parser: Any) -> None:
    """Declare the options of ``encode``."""
    parser.add_argument("--model", required=True)
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--rpc", action="append", default=[], help="an endpoint; give it once a server")
    parser.add_argument("--no-repack", dest="repack", action="store_false", help="plain weights on the local CPU")
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--cache-type", choices=("f32", "f16", "bf16", "q8_0", "q4_0"), default="f16")
    parser.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
