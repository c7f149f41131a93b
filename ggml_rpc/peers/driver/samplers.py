"""Apply stock sampler chains to given logits; no model is needed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from llama import ffi, lib
from numpy.typing import NDArray

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


def run(args: argparse.Namespace, emit: Any, _log: Any) -> None:
    """Store the survivors of sampler chains and their probabilities.

    The file of jobs is a JSON list of ``{"row": 0, "history": [...], "bias": [[token, value], ...], "min_keep": 0}``
    and the parameters by the names of llama.cpp's functions (``top_k``, ``typical``, ``top_p``, ``min_p``, ``temp``
    and ``last_n``, ``repeat``, ``freq``, ``present`` of the penalties). The samplers stand in the order of llama-cli's
    chain, before them the bias, after them the draw, which computes the probabilities. Job i stores ``ids_i``, ``p_i``
    and ``logits_i`` (after all changes), in the chain's final order, and ``chosen_i``.
    """
    rows = np.load(args.rows)
    stored: dict[str, NDArray[Any]] = {}
    for i, job in enumerate(json.loads(Path(args.jobs).read_text())):
        survivors, chosen = _apply(rows[job["row"]], job)
        stored |= {f"ids_{i}": survivors["id"], f"p_{i}": survivors["p"], f"logits_{i}": survivors["logit"]}
        stored[f"chosen_{i}"] = np.array(chosen)
    np.savez(args.out, allow_pickle=False, **stored)
    emit("done", out=args.out)


def _apply(row: NDArray[np.float32], job: dict[str, Any]) -> tuple[NDArray[Any], int]:
    """Return the survivors of one job and the chosen token."""
    n_vocab = len(row)
    keep = job.get("min_keep", 0)
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    if job["bias"]:
        biases = ffi.new("llama_logit_bias[]", [{"token": token, "bias": value} for token, value in job["bias"]])
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_logit_bias(n_vocab, len(job["bias"]), biases))
    for sampler in (
        lib.llama_sampler_init_penalties(n_vocab, job["last_n"], job["repeat"], job["freq"], job["present"]),
        lib.llama_sampler_init_top_k(job["top_k"]),
        lib.llama_sampler_init_typical(job["typical"], keep),
        lib.llama_sampler_init_top_p(job["top_p"], keep),
        lib.llama_sampler_init_min_p(job["min_p"], keep),
        lib.llama_sampler_init_temp_ext(job["temp"], 0.0, 1.0),
        lib.llama_sampler_init_dist(1),
    ):
        lib.llama_sampler_chain_add(chain, sampler)
    for token in job["history"]:
        lib.llama_sampler_accept(chain, token)
    data = np.zeros(n_vocab, CANDIDATE)
    data["id"] = np.arange(n_vocab)
    data["logit"] = row
    array = ffi.new("llama_token_data_array *")
    array.data = ffi.cast("llama_token_data *", data.ctypes.data)
    array.size = n_vocab
    array.selected = -1
    lib.llama_sampler_apply(chain, array)
    # A sampler may have put its own memory in place of ours.
    survivors = np.frombuffer(ffi.buffer(array.data, array.size * CANDIDATE.itemsize), CANDIDATE).copy()
    chosen = int(survivors["id"][array.selected])
    lib.llama_sampler_free(chain)
    return survivors, chosen
