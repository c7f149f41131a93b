"""The chain against stock llama.cpp's own samplers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggml_rpc.llm.sampling import Candidates, Sampler, SamplingParams
from ggml_rpc.peers import PeerError, prepare_peer

from . import oracle

pytestmark = pytest.mark.peer

N_VOCAB = 3000
# Stock adds probabilities in float32, in top-p one after another: of 3000 terms the error stays below 1e-5.
NEAR = 2e-5

PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.0, "typical_p": 0.3},
    {"temperature": 1.7, "top_k": 7},
    {"top_k": 200, "top_p": 0.8, "min_p": 0.0},
    {"top_k": 0},
    {"top_k": 0, "min_p": 0.0},
    {"top_k": 0, "min_p": 0.0, "top_p": 0.999},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.01},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"typical_p": 0.7, "top_p": 1.0, "min_p": 0.0},
    {"typical_p": 0.9},
    {"top_k": 0, "typical_p": 0.5, "top_p": 0.9},
    {"top_p": 0.0},
    {"min_p": 1.0},
    {"repeat_penalty": 1.3, "repeat_last_n": 32},
    {"repeat_penalty": 0.8, "frequency_penalty": 0.5, "presence_penalty": -1.0},
    {"frequency_penalty": 2.0, "repeat_last_n": 5, "logit_bias": {5: 3.0, 6: -float("inf"), 2999: 20.0}},
    {"temperature": 0.0, "presence_penalty": 5.0, "logit_bias": {17: 1.5}},
    {"repeat_penalty": 1.5, "repeat_last_n": 0},
]


def job(row: int, params: SamplingParams, history: list[int], min_keep: int = 0) -> dict[str, Any]:
    return {
        "row": row,
        "history": history,
        "bias": list(params.logit_bias.items()),
        "min_keep": min_keep,
        "top_k": params.top_k,
        "typical": params.typical_p,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "temp": params.temperature,
        "last_n": params.repeat_last_n,
        "repeat": params.repeat_penalty,
        "freq": params.frequency_penalty,
        "present": params.presence_penalty,
    }


Survivors = tuple[NDArray[np.int32], NDArray[np.float64], int]
Stock = Callable[[NDArray[np.float32], list[dict[str, Any]]], list[Survivors]]


@pytest.fixture
def stock(tmp_path: Path) -> Stock:
    """Return a function that gives, for each job, ids, probabilities and the chosen token of stock's chain."""
    try:
        peer = prepare_peer("8.0")
    except PeerError as error:
        if os.environ.get("GGML_RPC_REQUIRE_PEERS") == "1":
            pytest.fail(f"stock peer 8.0: {error}", pytrace=False)
        pytest.skip(f"stock peer 8.0: {error}")

    def run(rows: NDArray[np.float32], jobs: list[dict[str, Any]]) -> list[Survivors]:
        np.save(tmp_path / "rows.npy", rows)
        (tmp_path / "jobs.json").write_text(json.dumps(jobs))
        names = {name: str(tmp_path / file) for name, file in (("rows", "rows.npy"), ("jobs", "jobs.json"))}
        out = tmp_path / "out.npz"
        command = peer.driver_command(["samplers", "--rows", names["rows"], "--jobs", names["jobs"], "--out", str(out)])
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        with np.load(out) as found:
            return [
                (found[f"ids_{i}"], found[f"p_{i}"].astype(np.float64), int(found[f"chosen_{i}"]))
                for i in range(len(jobs))
            ]

    return run


def random_rows(count: int) -> NDArray[np.float32]:
    """Return rows from nearly flat to steep."""
    rng = np.random.default_rng(3)
    return np.stack([rng.normal(0, rng.uniform(0.5, 6), N_VOCAB) for _ in range(count)]).astype(np.float32)


def alive(ids: NDArray[Any], p: NDArray[np.float64]) -> dict[int, float]:
    """Return token -> probability without those of 0: stock keeps -inf, and all the others at temperature 0."""
    return {int(token): float(share) for token, share in zip(ids, p, strict=True) if share > 0}


def test_survivors_and_probabilities_are_stocks(stock: Stock) -> None:
    rows = random_rows(25)
    rng = np.random.default_rng(4)
    cases = []
    for changes in PARAMS:
        params = SamplingParams(seed=1, **changes)
        for number, row in enumerate(rows):
            # Histories of likely tokens, some of them twice: penalties that matter.
            likely = np.argsort(row)[-60:]
            history = rng.choice(likely, int(rng.integers(0, 90))).tolist()
            cases.append((number, params, history))
    found = stock(rows, [job(*case) for case in cases])
    compared = 0
    for (number, params, history), (ids, p, chosen) in zip(cases, found, strict=True):
        if oracle.borderline(oracle.changed(rows[number], params, history), params, NEAR):
            continue
        compared += 1
        sampler = Sampler(params, N_VOCAB)
        sampler.reset(history)
        ours, stocks = alive(*sampler.distribution(rows[number])), alive(ids, p)
        assert set(ours) == set(stocks), (params, number)
        # Stock's float32: an error of a logit and of the sum, each relative 1e-6 or so after the exponential.
        assert max(abs(ours[token] / stocks[token] - 1) for token in ours if stocks[token] > 1e-30) < 2e-5
        if params.temperature <= 0:
            assert sampler.sample(rows[number]) == chosen
    assert compared > 0.9 * len(cases)


def test_min_keep_of_one_changes_nothing(stock: Stock) -> None:
    """llama-cli passes min_keep 0, other programs 1: we have none, as these two are the same."""
    rows = random_rows(4)
    cases = [(number, SamplingParams(seed=1, **changes), []) for changes in PARAMS for number in range(len(rows))]
    for none, one in zip(
        stock(rows, [job(*case) for case in cases]),
        stock(rows, [job(*case, min_keep=1) for case in cases]),
        strict=True,
    ):
        assert alive(*none[:2]) == alive(*one[:2])


def test_ties(stock: Stock) -> None:
    """Stock keeps top_k of a tie at the cut, whichever; min-p keeps all of a tie; top-p stops inside it. So do we."""
    row = np.full(N_VOCAB, -5, np.float32)
    row[[10, 700, 701, 2000, 2001, 2999]] = 3
    rows = row[None]
    off = {"top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
    cases: list[dict[str, Any]] = [
        off | {"top_k": 4},
        off | {"top_k": 0, "min_p": 0.9},
        off | {"top_k": 0, "top_p": 0.4},
    ]
    for changes, stocks in zip(
        cases, stock(rows, [job(0, SamplingParams(**changes), []) for changes in cases]), strict=True
    ):
        ours = Sampler(SamplingParams(**changes), N_VOCAB).distribution(row)
        assert len(ours[0]) == len(stocks[0])
        assert set(row[ours[0]]) == set(row[stocks[0]]) == {np.float32(3)}
        np.testing.assert_allclose(ours[1], stocks[1], rtol=1e-6)


def test_the_best_alone_give_what_stock_has(stock: Stock) -> None:
    """With defaults and penalties, from no more than `Sampler.need` says."""
    rows = random_rows(10) * np.float32(1.5)
    params = SamplingParams(seed=1, repeat_penalty=1.2, frequency_penalty=0.3)
    big = np.full((len(rows), 8 * N_VOCAB), -40, np.float32)
    big[:, :N_VOCAB] = rows
    history = np.argsort(rows[0])[-40:].tolist()
    for row, (ids, p, _) in zip(big, stock(big, [job(i, params, history) for i in range(len(big))]), strict=True):
        if oracle.borderline(oracle.changed(row, params, history), params, NEAR):
            continue
        sampler = Sampler(params, len(row))
        sampler.reset(history)
        need = sampler.need()
        assert need.kind == "top"
        assert set(alive(*sampler.distribution(Candidates.of(row, need)))) == set(alive(ids, p))
