"""Print the host's work per token of sampling, in microseconds: the median of many tokens.

``row`` is the time with the whole row of logits, ``best`` with what `Sampler.need` asks for. Two kinds of rows:
``peaked`` falls off like a language model's (-1.5 ln(rank), with noise), ``flat`` is Gaussian with a deviation of 3,
where tens of thousands of tokens share the probability. `bytes` is what crosses the network for a token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ggml_rpc.llm.sampling import Candidates, Need, Sampler, SamplingParams, log_softmax_at

CASES: dict[str, dict[str, float]] = {
    "default": {},
    "greedy": {"temperature": 0},
    "penalties": {"repeat_penalty": 1.1, "frequency_penalty": 0.1},
    "typical": {"typical_p": 0.9},
    "top_k=0": {"top_k": 0},
    "top_k=0 min_p=0": {"top_k": 0, "min_p": 0},
    "top_k=0 top_p=1": {"top_k": 0, "top_p": 1},
    "top_k=0 typical": {"top_k": 0, "typical_p": 0.9},
    "temperature only": {"top_k": 0, "top_p": 1, "min_p": 0},
}


def rows(kind: str, n_vocab: int, count: int) -> NDArray[np.float32]:
    """Return rows of logits."""
    rng = np.random.default_rng(1)
    if kind == "flat":
        return rng.normal(0, 3, (count, n_vocab)).astype(np.float32)
    ranked = -1.5 * np.log(np.arange(1, n_vocab + 1)) + 20
    noise = rng.normal(0, 0.5, (count, n_vocab))
    return np.stack([rng.permutation(ranked) for _ in range(count)]).astype(np.float32) + noise.astype(np.float32)


def microseconds(call: Callable[[int], object], repeats: int) -> float:
    """Return the median time of a call that is given its number."""
    times = []
    for i in range(repeats + 3):
        begin = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:]) * 1e6


def fetched(need: Need, n_vocab: int) -> int:
    """Return the bytes of a need that cross the network, ids sent and answered included."""
    if need.kind == "full":
        return 4 * n_vocab
    if need.kind == "argmax":
        return 4
    return 8 * need.k + 8 * len(need.extra_ids)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, action="append", help="length of a row (default: 32000 and 262144)")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    print(f"{'vocabulary':>10} {'rows':>7} {'case':<18} {'row us':>9} {'best us':>8} {'bytes':>8}")
    for n_vocab in args.vocab or (32000, 262144):
        for kind in ("peaked", "flat"):
            logits = rows(kind, n_vocab, 8)
            for name, changes in CASES.items():
                sampler = Sampler(SamplingParams(seed=1, **changes), n_vocab)  # type: ignore[arg-type]
                sampler.reset(range(64))
                need = sampler.need()

                def whole(i: int, sampler: Sampler = sampler, logits: NDArray[np.float32] = logits) -> None:
                    sampler.next(lambda _need: logits[i % len(logits)])

                row = {"n_vocab": n_vocab, "rows": kind, "case": name, "bytes": fetched(need, n_vocab)}
                row["row_us"] = microseconds(whole, args.repeats)
                if need.kind != "full":
                    # Each repeat's candidates fit the history that it finds.
                    best = Sampler(sampler.params, n_vocab)
                    best.reset(range(64))
                    times = []
                    for i in range(args.repeats):
                        given = Candidates.of(logits[i % len(logits)], best.need())
                        begin = time.perf_counter()
                        best.need()
                        best.accept(best.sample(Candidates(given.ids, given.logits, given.extra_logits)))
                        times.append(time.perf_counter() - begin)
                    row["best_us"] = statistics.median(times) * 1e6
                results.append(row)
                shown = f"{row['best_us']:8.1f}" if "best_us" in row else f"{'-':>8}"
                print(f"{n_vocab:>10} {kind:>7} {name:<18} {row['row_us']:9.1f} {shown} {row['bytes']:>8}")
            took = microseconds(lambda i, x=logits: log_softmax_at(x[i % len(x)], 0), args.repeats)
            results.append({"n_vocab": n_vocab, "rows": kind, "case": "log_softmax_at", "row_us": took})
            print(f"{n_vocab:>10} {kind:>7} {'log_softmax_at':<18} {took:9.1f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
