"""The client's subcommands; each writes JSON lines."""

from __future__ import annotations

import argparse
import codecs
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dialogue
import numpy as np
import samplers
import timing
from llama import Context, Log, Model
from numpy.typing import NDArray
from scoring import Reference

Emit = Callable[..., None]


def _model(args: argparse.Namespace, emit: Emit | None = None) -> Model:
    def report(value: float) -> None:
        if emit is not None:
            emit("progress", value=value)

    return Model(args.model, args.rpc, split=args.split, progress=report, repack=args.repack)


def tokenize(args: argparse.Namespace, emit: Emit, _log: Log) -> None:
    """Print the token ids of a text file."""
    model = Model(args.model, vocab_only=True)
    emit("tokens", ids=model.tokenize(Path(args.text).read_text())[: args.limit])
    model.close()


def generate(args: argparse.Namespace, emit: Emit, log: Log) -> None:
    """Load a model and stream generated text."""
    start = time.perf_counter()
    model = _model(args, emit)
    context = Context(model, n_ctx=args.n_ctx, flash=args.flash, cache_type=args.cache_type, threads=args.threads)
    emit("loaded", seconds=time.perf_counter() - start, layers=log.layers(), devices=model.devices)
    prompt = model.tokenize(args.prompt)
    start = time.perf_counter()
    context.decode(prompt)
    emit("prompt", tokens=len(prompt), seconds=time.perf_counter() - start)
    text = codecs.getincrementaldecoder("utf-8")("replace")
    start = time.perf_counter()
    count = 0
    for token in context.sample(temperature=args.temperature, seed=args.seed):
        if context.is_end(token) or count == args.n_predict or context.n_past == args.n_ctx:
            break
        emit("text", piece=text.decode(model.piece(token)), token=token)
        context.decode([token])
        count += 1
    emit("text", piece=text.decode(b"", final=True), token=-1)
    emit("done", tokens=count, seconds=time.perf_counter() - start)
    context.close()
    model.close()


def logits(args: argparse.Namespace, emit: Emit, log: Log) -> None:
    """Feed given tokens in given batches and store the logits, job after job, with one loaded model.

    The file of jobs is a JSON list of ``{"tokens": [...], "batches": [...], "out": "file.npy", "every": false}``: the
    batches' sizes add up to the number of tokens; ``out`` receives a float32 row for the last token of each batch, or
    for every token.
    """
    jobs = json.loads(Path(args.jobs).read_text())
    model = _model(args)
    context = Context(
        model,
        n_ctx=args.n_ctx,
        n_ubatch=args.n_ubatch,
        flash=args.flash,
        cache_type=args.cache_type,
        threads=args.threads,
    )
    emit("loaded", layers=log.layers(), devices=model.devices)
    for job in jobs:
        context.clear()
        rows = []
        at = 0
        for size in job["batches"]:
            rows.append(context.decode(job["tokens"][at : at + size], every=job.get("every", False)).copy())
            at += size
        np.save(job["out"], np.concatenate(rows))
        emit("job", out=job["out"], rows=sum(map(len, rows)))
    if args.hold:
        emit("holding")
        time.sleep(args.hold)
    context.close()
    model.close()


def compare(args: argparse.Namespace, emit: Emit, _log: Log) -> None:
    """Read a text through several servers at once and compare the next-token distributions, window by window.

    Each run (``{"label": ..., "rpc": [...], "flash": "on"}``) has its own context. Stores, for every run, the negative
    log-likelihood of each token and the Kullback-Leibler divergence from the first run, arrays of shape (tokens,).
    """
    runs = json.loads(args.runs)
    models: dict[tuple[str, ...], Model] = {}
    contexts = {}
    for run in runs:
        servers = tuple(run["rpc"])
        if servers not in models:
            models[servers] = Model(args.model, servers)
        contexts[run["label"]] = Context(
            models[servers], n_ctx=args.n_ctx, n_batch=args.n_batch, flash=run["flash"], threads=args.threads
        )
    tokens = next(iter(models.values())).tokenize(Path(args.text).read_text())
    start_token, tokens = tokens[0], tokens[1 : args.tokens + 1]
    emit("text", tokens=len(tokens))
    nll: dict[str, list[NDArray[np.float64]]] = {label: [] for label in contexts}
    kl: dict[str, list[NDArray[np.float64]]] = {label: [] for label in contexts}
    step = args.n_ctx - 1
    for window in range(0, len(tokens), step):
        targets = np.array(tokens[window : window + step])
        inputs = [start_token, *tokens[window : window + step]][: len(targets)]
        for context in contexts.values():
            context.clear()
        for at in range(0, len(inputs), args.n_batch):
            batch = Reference(targets[at : at + args.n_batch])
            for label, context in contexts.items():
                losses, divergences = batch.score(context.decode(inputs[at : at + args.n_batch], every=True))
                nll[label].append(losses)
                kl[label].append(divergences)
        emit(
            "window",
            tokens=min(window + step, len(tokens)),
            nll={label: float(np.concatenate(parts).mean()) for label, parts in nll.items()},
            kl={label: float(np.concatenate(parts).mean()) for label, parts in kl.items()},
        )
    arrays: dict[str, NDArray[np.float64]] = {f"nll_{label}": np.concatenate(parts) for label, parts in nll.items()}
    arrays |= {f"kl_{label}": np.concatenate(parts) for label, parts in kl.items()}
    np.savez(args.out, allow_pickle=False, **arrays)
    emit("done", out=args.out)
    for context in contexts.values():
        context.close()
    for model in models.values():
        model.close()


def bench(args: argparse.Namespace, emit: Emit, _log: Log) -> None:
    """Time loading, prefill and decode on several servers, turn by turn, so that drift hits all alike."""
    runs = json.loads(args.runs)
    for repeat in range(args.loads):
        for run in runs:
            start = time.perf_counter()
            Model(args.model, run["rpc"]).close()
            emit("load", label=run["label"], repeat=repeat, seconds=time.perf_counter() - start)
    if args.repeats == 0:
        return
    contexts = []
    for run in runs:
        model = Model(args.model, run["rpc"])
        n_ctx = args.prefill + args.decode + 32
        contexts.append((run["label"], Context(model, n_ctx=n_ctx, n_batch=args.prefill, flash=args.flash)))
    tokens = np.random.default_rng(1).integers(3, contexts[0][1].model.n_vocab, args.prefill + args.decode).tolist()
    for _label, context in contexts:  # first graphs, first touch of the cache
        context.decode(tokens[: args.prefill])
        context.decode(tokens[:1])
    for repeat in range(args.repeats):
        for label, context in contexts:
            context.clear()
            start = time.perf_counter()
            context.decode(tokens[: args.prefill])
            prefill = time.perf_counter() - start
            start = time.perf_counter()
            for token in tokens[args.prefill :]:
                context.decode([token])
            decode = time.perf_counter() - start
            emit(
                "speed",
                label=label,
                repeat=repeat,
                prefill_tps=args.prefill / prefill,
                decode_tps=args.decode / decode,
            )
    for _label, context in contexts:
        context.close()
        context.model.close()


def add_commands(commands: Any) -> None:
    """Declare the subcommands of the client and their options."""

    def floats(text: str) -> list[float]:
        return [float(part) for part in text.split(",")] if text else []

    def client(name: str, action: Callable[..., None], *, servers: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=(action.__doc__ or "").splitlines()[0])
        parser.set_defaults(action=action)
        parser.add_argument("--model", required=True)
        parser.add_argument("--threads", type=int, default=2, help="of the local CPU device")
        if servers:
            parser.add_argument("--rpc", action="append", default=[], help="an endpoint; give it once a server")
            parser.add_argument("--split", type=floats, default=[], help="share of each device, separated by commas")
            parser.add_argument(
                "--no-repack", dest="repack", action="store_false", help="plain weights on the local CPU"
            )
            parser.add_argument("--n-ctx", type=int, default=512)
            parser.add_argument("--cache-type", choices=("f32", "f16", "bf16", "q8_0", "q4_0"), default="f16")
        if action is not tokenize and action is not compare:
            parser.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
        return parser

    parser = client("tokenize", tokenize, servers=False)
    parser.add_argument("--text", required=True)
    parser.add_argument("--limit", type=int, default=None)

    parser = client("generate", generate)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("-n", "--n-predict", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)

    parser = client("logits", logits)
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--n-ubatch", type=int, default=512)
    parser.add_argument("--hold", type=float, default=0.0, help="seconds to keep the model after the last job")

    parser = client("compare", compare, servers=False)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=20000)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--n-batch", type=int, default=128)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--out", required=True)

    parser = commands.add_parser("dialogue", help=(dialogue.run.__doc__ or "").splitlines()[0])
    parser.set_defaults(action=dialogue.run)
    dialogue.add_arguments(parser)

    parser = commands.add_parser("timing", help=(timing.run.__doc__ or "").splitlines()[0])
    parser.set_defaults(action=timing.run)
    timing.add_arguments(parser)

    parser = commands.add_parser("samplers", help=(samplers.run.__doc__ or "").splitlines()[0])
    parser.set_defaults(action=samplers.run)
    parser.add_argument("--rows", required=True, help="a .npy file, float32, a row of logits each")
    parser.add_argument("--jobs", required=True, help="a JSON file")
    parser.add_argument("--out", required=True, help="the .npz file to write")

    parser = client("bench", bench, servers=False)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--loads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
