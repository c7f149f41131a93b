"""Logits of stock llama.cpp, the reference of our own client's, kept in the cache folder.

A reference depends on the model's bytes, the stock build, the processor it ran on and the arguments: all of them make
the name of the file that keeps it, so a second run of the tests starts no stock process.

How far stock lies from itself on the models `llama`, `gemma3`, `qwen3moe` and `phi3` of this folder, fed with `PROMPT`
(NMSE over all rows, largest of the four; AVX2 build 8.0.0):

======================================  =======  =======  =======  =======
against its CPU, F16 cache, no flash    F32      F16      Q8_0     Q4_K_M
======================================  =======  =======  =======  =======
through its own RPC server              0        0        0        0
graphs of 16 tokens                     0        0        0        4e-15
client of protocol 7.0                  0        0        0        0
one token at a time                     4.7e-8   3.9e-7   7.1e-5   2.1e-4
weights laid out anew                   0        0        0        2.2e-4
F32 cache                               4.6e-7   1.1e-6   3.5e-4   7.2e-4
flash attention                         1.7e-6   2.4e-6   3.9e-4   7.5e-4
our server                              7.5e-8   4.8e-7   1.2e-4   3.0e-4
======================================  =======  =======  =======  =======

So compare equal settings: cache type and flash attention as in the run under test, and no weights laid out anew.
With quantised weights the least difference in rounding moves some activations over the steps of their own
quantisation to 8 bits, which moves more of them in the next product: hence the right columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ggml_rpc.peers.driver
from ggml_rpc.peers import Peer, prepare_peer
from ggml_rpc.peers.cache import cache_dir
from ggml_rpc.peers.process import PATIENT

PROMPT = [(37 * i + 11) % 509 for i in range(100)]
"""Tokens for models of at least 509; more than six of the sliding windows of 16."""

BATCHES = [60, 30] + [1] * 10
"""Prefill in two steps, then one token at a time."""

TIMEOUT = 240.0
DRIVER = Path(ggml_rpc.peers.driver.__path__[0])

Logits = NDArray[np.float32]


class StockError(RuntimeError):
    """Tell that the stock client failed; the message holds the end of its log."""


def stock_logits(
    model: Path,
    tokens: Sequence[int],
    batches: Sequence[int] | None = None,
    *,
    flash: str = "off",
    cache_type: str = "f16",
    n_ctx: int = 512,
    n_ubatch: int = 512,
    every: bool = True,
    repack: bool = False,
    servers: Sequence[str] = (),
    protocol: str = "8.0",
) -> Logits:
    """Return the logits that stock llama.cpp computes for given tokens.

    Parameters
    ----------
    model : pathlib.Path
        GGUF file.
    tokens : sequence of int
        Token ids, at positions 0, 1, ...
    batches : sequence of int, optional
        How many tokens each call takes, at most 512; they add up to all. Default: one batch.
    flash : str
        Flash attention, ``"on"`` or ``"off"``.
    cache_type : str
        Type of the key and value cache: ``"f32"``, ``"f16"``, ``"bf16"``, ``"q8_0"`` or ``"q4_0"``; the last two need
        flash attention.
    n_ctx, n_ubatch : int
        Positions the cache holds, tokens a graph takes.
    every : bool
        A row for every token rather than for the last one of each batch.
    repack : bool
        Let the local CPU lay weights out anew for its fastest kernels, which round differently.
    servers : sequence of str
        Endpoints of RPC servers that hold the whole model; such logits are computed anew each time. Empty: the stock
        client's own CPU.
    protocol : str
        Which stock peer.

    Returns
    -------
    numpy.ndarray
        Shape ``(rows, n_vocab)``, float32.

    Raises
    ------
    ggml_rpc.peers.PeerError
        If there is no stock peer here.
    StockError
        If it fails.
    """
    batches = [len(tokens)] if batches is None else list(batches)
    assert sum(batches) == len(tokens)
    options = ["--flash", flash, "--cache-type", cache_type, "--n-ctx", str(n_ctx), "--n-ubatch", str(n_ubatch)]
    options += [] if repack else ["--no-repack"]
    peer = prepare_peer(protocol)
    command = ["logits", "--model", str(model)]
    job = {"tokens": list(tokens), "batches": batches, "every": every}
    if servers:
        with tempfile.TemporaryDirectory() as folder:
            endpoints = [word for server in servers for word in ("--rpc", server)]
            return _run(peer, [*command, *options, *endpoints], job, Path(folder) / "logits.npy")
    path = cache_dir() / "logits" / f"{_key(peer, model, job, options)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            _run(peer, [*command, *options], job, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    logits: Logits = np.load(path)
    return logits


def stock_encoded(
    model: Path,
    read: Sequence[int],
    tokens: Sequence[int] = (),
    batches: Sequence[int] = (),
    *,
    cache_type: str = "f16",
    servers: Sequence[str] = (),
) -> Logits:
    """Return what stock llama.cpp makes of a text that an encoder reads, computed anew each time.

    Parameters
    ----------
    model : pathlib.Path
        GGUF file.
    read : sequence of int
        Token ids for the encoder.
    tokens, batches : sequence of int
        Token ids for the decoder, and how many of them each call takes. None: embeddings are wanted.
    cache_type : str
        Type of the decoder's key and value cache.
    servers : sequence of str
        Endpoints of RPC servers that hold the whole model. Empty: the stock client's own CPU.

    Returns
    -------
    numpy.ndarray
        A row of the embedding for each token that was read, or of logits for each that the decoder took, float32.
    """
    job: dict[str, object] = {"read": list(read), "tokens": list(tokens), "batches": list(batches)}
    command = ["encode", "--model", str(model), "--flash", "off", "--cache-type", cache_type, "--no-repack"]
    command += [word for server in servers for word in ("--rpc", server)]
    with tempfile.TemporaryDirectory() as folder:
        return _run(prepare_peer("8.0"), command, job, Path(folder) / "rows.npy")


def bound(kind: str) -> float:
    """Return the NMSE that another engine's logits must stay below, for weights of a type.

    Parameters
    ----------
    kind : str
        One of the kinds of `tests.llm.models`.
    """
    return 1e-6 if kind == "F32" else 5e-4


def nmse(result: Logits, expected: Logits) -> float:
    """Return the normalised mean square error: the squared error over the squared deviation of each row from its mean.

    A constant added to a whole row changes no probability, so it must not make the error look smaller.

    Parameters
    ----------
    result, expected : numpy.ndarray
        Shape ``(rows, n_vocab)``.
    """
    want = expected.astype(np.float64)
    spread = want - want.mean(axis=1, keepdims=True)
    return float(np.square(result - want).sum() / np.square(spread).sum())


def _run(peer: Peer, command: Sequence[str], job: dict[str, object], out: Path) -> Logits:
    listing = out.with_suffix(".json")
    listing.write_text(json.dumps([{**job, "out": str(out)}]))
    done = subprocess.run(
        peer.driver_command([*command, "--jobs", str(listing)]),
        check=False,
        env={**os.environ, **PATIENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if done.returncode != 0:
        raise StockError(f"the stock client ended with {done.returncode}:\n{done.stderr[-3000:]}")
    logits: Logits = np.load(out)
    return logits


def _key(peer: Peer, model: Path, job: dict[str, object], options: Sequence[str]) -> str:
    digest = hashlib.sha256(_file_digest(model, model.stat().st_mtime_ns).encode())
    digest.update(json.dumps([peer.version, _machine(), job, list(options)]).encode())
    return digest.hexdigest()[:32]


@cache
def _file_digest(path: Path, _modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


@cache
def _machine() -> str:
    """Return what decides which kernels the stock build picks, and the sources that run it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    sources = b"".join((DRIVER / name).read_bytes() for name in ("commands.py", "llama.py"))
    return hashlib.sha256(flags.encode() + sources).hexdigest()
