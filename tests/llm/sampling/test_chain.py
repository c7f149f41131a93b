"""The chain against NumPy in float64, and the ways of giving it logits against each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggml_rpc.errors import ComputeError
from ggml_rpc.llm.sampling import Candidates, Need, Sampler, SamplingParams, Undecided

from . import oracle

# Below an eighth of this the best cross the network alone.
N_VOCAB = 2400
INF = float("inf")

share = st.one_of(st.just(0.0), st.just(1.0), st.floats(0.001, 0.9999))
params_of = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.one_of(st.just(0.0), st.floats(0.05, 5)),
        "top_k": st.integers(0, 100),
        "top_p": share,
        "min_p": share,
        "typical_p": share,
        "repeat_penalty": st.floats(0.2, 3),
        "repeat_last_n": st.integers(-1, 80),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(
            st.integers(0, N_VOCAB - 1), st.one_of(st.just(-INF), st.floats(-30, 30)), max_size=5
        ),
    },
)


def row_of(seed: int, spread: float, steps: int, banned: float) -> NDArray[np.float32]:
    """Return a row; with `steps`, rounded to a multiple of 1/steps, so that many logits are equal."""
    rng = np.random.default_rng(seed)
    row = rng.normal(0, spread, N_VOCAB)
    if steps:
        row = np.round(row * steps) / steps
    row[rng.random(N_VOCAB) < banned] = -INF
    row[int(rng.integers(N_VOCAB))] = 0
    return row.astype(np.float32)


rows = st.builds(
    row_of,
    st.integers(0, 2**32),
    st.floats(0.1, 8),
    st.sampled_from([0, 0, 1, 8, 1000]),
    st.sampled_from([0, 0.5, 0.99]),
)
smooth = st.builds(row_of, st.integers(0, 2**32), st.floats(0.1, 8), st.just(0), st.sampled_from([0, 0.5, 0.99]))


def history_of(row: NDArray[np.float32], seed: int, length: int) -> list[int]:
    """Return likely tokens, some of them several times: penalties that matter."""
    likely = np.argsort(row)[-50:]
    return [int(token) for token in np.random.default_rng(seed).choice(likely, length)]


@settings(max_examples=300)
@given(smooth, params_of, st.integers(0, 120))
def test_survivors_are_the_oracles(row: NDArray[np.float32], changes: dict[str, Any], length: int) -> None:
    params = SamplingParams(**changes)
    history = history_of(row, 1, length)
    after = oracle.changed(row, params, history)
    # The sums over a whole row are float32's in part.
    assume(not oracle.borderline(after, params, 1e-6))
    sampler = Sampler(params, N_VOCAB)
    sampler.reset(history)
    ids, p = sampler.distribution(row)
    expected_ids, expected_p = oracle.chain(after, params)
    assert set(ids[p > 0]) == set(expected_ids[expected_p > 1e-37]) | set(ids[(p > 0) & (p < 1e-36)])
    dense = np.zeros(N_VOCAB)
    dense[ids] = p
    np.testing.assert_allclose(dense[expected_ids], expected_p, rtol=1e-5, atol=1e-30)
    assert abs(p.sum() - 1) < 1e-12


class Device:
    """Answer needs from a row; equal logits come in an order of the device's own."""

    def __init__(self, row: NDArray[np.float32], seed: int) -> None:
        self.row = row
        self.rng = np.random.default_rng(seed)
        self.asked: list[Need] = []

    def __call__(self, need: Need) -> NDArray[np.float32] | Candidates:
        self.asked.append(need)
        if need.kind == "full":
            return self.row
        if need.kind == "argmax":
            # As ggml: the last of equal maxima.
            best = len(self.row) - 1 - int(np.argmax(self.row[::-1]))
            return Candidates([best], [0.0])
        order = np.lexsort((self.rng.random(len(self.row)), self.row))[::-1][: need.k]
        order = self.rng.permutation(order)
        return Candidates(order, self.row[order], self.row[need.extra_ids])


@settings(max_examples=300)
@given(rows, params_of, st.integers(0, 120), st.integers(0, 2**64 - 1))
@example(row_of(1, 1.0, 1, 0.0), {"top_k": 40}, 0, 1)
@example(row_of(2, 3.0, 8, 0.0), {"temperature": 0.0, "repeat_penalty": 2.0}, 60, 1)
@example(row_of(3, 3.0, 0, 0.99), {"top_k": 40}, 0, 1)
def test_the_best_alone_give_the_same_tokens(
    row: NDArray[np.float32], changes: dict[str, Any], length: int, seed: int
) -> None:
    params = SamplingParams(seed=seed, **changes)
    device = Device(row, seed % 1000)
    few, full = Sampler(params, N_VOCAB), Sampler(params, N_VOCAB)
    history = history_of(row, 2, length)
    for sampler in (few, full):
        sampler.reset(history)
    for _ in range(6):
        assert few.next(device) == full.next(lambda _need: row)
    if not params.top_k and params.temperature > 0:
        assert {need.kind for need in device.asked} == {"full"}


@settings(max_examples=200)
@given(smooth, st.integers(1, 100), st.floats(0.2, 3), st.integers(0, 64), st.integers(0, 2**32))
def test_without_ties_the_best_are_enough(
    row: NDArray[np.float32], top_k: int, penalty: float, length: int, seed: int
) -> None:
    """The need is of what survives, not of luck: it is never Undecided where all logits differ."""
    finite = row[row > -INF]
    assume(len(set(finite.tolist())) == len(finite))
    params = SamplingParams(top_k=top_k, repeat_penalty=penalty, presence_penalty=0.5, seed=seed)
    sampler = Sampler(params, N_VOCAB)
    sampler.reset(history_of(row, 3, length))
    need = sampler.need()
    assert need.kind == "top"
    device = Device(row, seed)
    ids, p = sampler.distribution(device(need))
    whole_ids, whole_p = sampler.distribution(row)
    assert ids.tolist() == whole_ids.tolist()
    assert p.tolist() == whole_p.tolist()


def test_a_tie_at_the_cut_is_undecided_and_draws_nothing() -> None:
    row = np.full(N_VOCAB, -3, np.float32)
    row[:10] = 1
    params = SamplingParams(top_k=20, temperature=50.0, top_p=1.0, min_p=0.0, seed=7)
    sampler, fresh = Sampler(params, N_VOCAB), Sampler(params, N_VOCAB)
    given_up = 0
    for _ in range(3):
        try:
            sampler.sample(Candidates.of(row, sampler.need()))
        except Undecided:
            given_up += 1
    assert given_up == 3
    assert [sampler.sample(row) for _ in range(20)] == [fresh.sample(row) for _ in range(20)]
    # The tie is above the cut: decided.
    row[10:20] = 0
    assert sampler.sample(Candidates.of(row, sampler.need())) == fresh.sample(row)


def test_needs() -> None:
    assert Sampler(SamplingParams(temperature=0), N_VOCAB).need() is Need.argmax
    assert Sampler(SamplingParams(temperature=-1, top_k=0), N_VOCAB).need() is Need.argmax
    assert Sampler(SamplingParams(), N_VOCAB).need() == Need.top(41)
    assert Sampler(SamplingParams(top_k=0), N_VOCAB).need() is Need.full
    # No less to fetch than the row: an eighth of it, or 1024, is the most.
    assert Sampler(SamplingParams(top_k=299), N_VOCAB).need() == Need.top(300)
    assert Sampler(SamplingParams(top_k=300), N_VOCAB).need() is Need.full
    assert Sampler(SamplingParams(top_k=1024), 10**6).need() is Need.full
    # Penalties change logits of recent tokens only; the length of the extra ids changes in steps.
    sampler = Sampler(SamplingParams(repeat_penalty=1.1, repeat_last_n=-1), N_VOCAB)
    assert sampler.need() == Need.top(40 + 64 + 1)
    sampler.reset([5, 6, 5])
    need = sampler.need()
    assert need == Need.top(105)
    assert need.extra_ids.tolist() == [5, 6] + [0] * 62
    sampler.reset(range(65))
    assert sampler.need() == Need.top(40 + 128 + 1)
    assert len(sampler.need().extra_ids) == 128
    sampler.reset(range(200))
    assert sampler.need() is Need.full
    greedy = Sampler(SamplingParams(temperature=0, logit_bias={7: 1.0}), N_VOCAB).need()
    assert (greedy, greedy.extra_ids[0]) == (Need.top(1 + 64 + 1), 7)
    # Typical may drop the best, so greedy is no longer the argmax.
    assert Sampler(SamplingParams(temperature=0, typical_p=0.5), N_VOCAB).need() == Need.top(41)


def test_penalties_see_the_window_only() -> None:
    row = np.zeros(N_VOCAB, np.float32)
    row[[3, 4]] = [5, 4.5]
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=1, repeat_last_n=2), N_VOCAB)
    chosen = []
    for _ in range(6):
        chosen.append(sampler.next(lambda _need: row))
    # 3 is the best unless it is penalised and 4 is not.
    assert chosen == [3, 4, 3, 3, 4, 3]
    sampler.reset()
    assert sampler.sample(row) == 3


def test_draws_follow_the_probabilities() -> None:
    """Pearson's statistic of 40000 draws stays below its 1 - 1e-9 quantile."""
    row = row_of(5, 2.0, 0, 0.0)
    for changes, form in ({"top_k": 6}, "best"), ({"top_k": 0, "min_p": 0.2, "top_p": 1.0}, "row"):
        sampler = Sampler(SamplingParams(temperature=1.5, seed=11, **changes), N_VOCAB)  # type: ignore[arg-type]
        candidates = row if form == "row" else Candidates.of(row, sampler.need())
        ids, p = sampler.distribution(candidates)
        drawn = np.bincount([sampler.sample(candidates) for _ in range(40000)], minlength=N_VOCAB)[ids]
        assert drawn.sum() == 40000
        statistic = float(np.sum((drawn - 40000 * p) ** 2 / (40000 * p)))
        # Wilson and Hilferty's approximation of the quantile, 6 deviations out.
        freedom = len(ids) - 1
        assert freedom > 1
        assert statistic < freedom * (1 - 2 / (9 * freedom) + 6 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_draws_without_filters_follow_the_probabilities() -> None:
    row = row_of(6, 1.0, 0, 0.9)[:300]
    params = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)
    sampler = Sampler(params, len(row))
    _, p = sampler.distribution(row)
    drawn = np.bincount([sampler.sample(row) for _ in range(40000)], minlength=len(row))
    assert not drawn[np.isinf(row)].any()
    assert np.all(np.abs(drawn - 40000 * p) < 6 * np.sqrt(40000 * p) + 1e-9)


def test_a_seed_gives_the_same_tokens_everywhere() -> None:
    """These numbers are those of PCG64's raw stream, which NumPy keeps."""
    row = np.linspace(-4, 4, N_VOCAB).astype(np.float32)
    sampler = Sampler(SamplingParams(seed=42, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0), N_VOCAB)
    first = [sampler.sample(row) for _ in range(8)]
    sampler.reset()
    assert [sampler.sample(row) for _ in range(8)] == first
    shares = (np.random.PCG64(42).random_raw(8) >> np.uint64(11)) * 2.0**-53
    total = np.cumsum(oracle.softmax(row.astype(np.float64)))
    assert first == np.searchsorted(total, shares, side="right").tolist()


def test_a_random_seed_is_told() -> None:
    row = np.linspace(-4, 4, N_VOCAB).astype(np.float32)
    params = SamplingParams(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0)
    one, other = Sampler(params, N_VOCAB), Sampler(params, N_VOCAB)
    again = Sampler(SamplingParams(**{**vars(params), "seed": one.seed}), N_VOCAB)
    drawn = [one.sample(row) for _ in range(20)]
    assert drawn == [again.sample(row) for _ in range(20)]
    assert one.seed != other.seed


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("top_k", [0, 40])
def test_extreme_numbers(temperature: float, top_k: int) -> None:
    row = np.full(N_VOCAB, -INF, np.float32)
    row[[1, 2, 3]] = [-3e38, 3e38, 2.9e38]
    sampler = Sampler(SamplingParams(temperature=temperature, top_k=top_k, top_p=1.0, min_p=0.0, seed=1), N_VOCAB)
    assert {sampler.sample(row) for _ in range(50)} <= {1, 2, 3}
    if temperature < 1:
        assert sampler.sample(row) == 2


def test_vocabulary_of_one() -> None:
    for changes in ({}, {"top_k": 0}, {"temperature": 0}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {"typical_p": 0.1}):
        sampler = Sampler(SamplingParams(**changes), 1)  # type: ignore[arg-type]
        assert sampler.next(lambda need: np.zeros(1, np.float32)) == 0


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"temperature": 0},
    {"repeat_penalty": 1.2},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"top_k": 0, "typical_p": 0.5},
]


@pytest.mark.parametrize("changes", CONFIGURATIONS)
@pytest.mark.parametrize("where", [0, 127, 128, 2304, N_VOCAB - 1])
def test_broken_logits_are_named(changes: dict[str, Any], where: int) -> None:
    sampler = Sampler(SamplingParams(**changes), N_VOCAB)
    for value, word in ((np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, "inf")):
        row = np.zeros(N_VOCAB, np.float32)
        row[where] = value
        with pytest.raises(ComputeError, match=rf"token {where} is {word}"):
            sampler.sample(row)
    with pytest.raises(ComputeError, match="every logit is -inf"):
        sampler.sample(np.full(N_VOCAB, -np.inf, np.float32))
    # It is still usable.
    assert 0 <= sampler.sample(np.zeros(N_VOCAB, np.float32)) < N_VOCAB


def test_hostile_candidates_are_refused() -> None:
    sampler = Sampler(SamplingParams(seed=1), N_VOCAB)
    ids, logits = np.arange(41, dtype=np.int32), np.arange(41, dtype=np.float32)
    expected = Sampler(SamplingParams(seed=1), N_VOCAB).sample(Candidates(ids, logits))

    def changed(values: NDArray[Any], at: int, value: float) -> NDArray[Any]:
        values = values.copy()
        values[at] = value
        return values

    bad = [
        (changed(ids, 7, 8), logits, "token 8 twice"),
        (changed(ids, 7, N_VOCAB), logits, f"token {N_VOCAB} among"),
        (changed(ids, 7, -1), logits, "token -1 among"),
        (ids, changed(logits, 7, np.nan), "token 7 is NaN"),
        (ids, changed(logits, 7, np.inf), "token 7 is inf"),
        (ids, np.full(41, -np.inf), "every logit"),
    ]
    for wrong_ids, wrong_logits, text in bad:
        with pytest.raises(ComputeError, match=text):
            sampler.sample(Candidates(wrong_ids, wrong_logits))
    assert sampler.sample(Candidates(ids, logits)) == expected
    with pytest.raises(ComputeError, match=f"token {N_VOCAB}"):
        Sampler(SamplingParams(temperature=0), N_VOCAB).sample(Candidates([N_VOCAB], [0.0]))
    penalized = Sampler(SamplingParams(repeat_penalty=1.1), N_VOCAB)
    penalized.reset([4])
    need = penalized.need()
    row = np.linspace(0, 1, N_VOCAB).astype(np.float32)
    good = Candidates.of(row, need)
    for value, word in ((np.nan, "NaN"), (np.inf, "inf")):
        with pytest.raises(ComputeError, match=f"token 4 is {word}"):
            penalized.sample(Candidates(good.ids, good.logits, changed(good.extra_logits, 0, value)))


def test_too_little_is_refused() -> None:
    sampler = Sampler(SamplingParams(), N_VOCAB)
    with pytest.raises(ValueError, match=r"shape \(2400,\)"):
        sampler.sample(np.zeros(N_VOCAB + 1, np.float32))
    with pytest.raises(ValueError, match="best 41 logits"):
        sampler.sample(Candidates(range(40), range(40)))
    with pytest.raises(ValueError, match="whole row"):
        Sampler(SamplingParams(top_k=0), N_VOCAB).sample(Candidates(range(40), range(40)))
    sampler = Sampler(SamplingParams(presence_penalty=1), N_VOCAB)
    sampler.reset([1, 2])
    with pytest.raises(ValueError, match="2 of its own choice"):
        sampler.sample(Candidates(range(105), range(105), [0.0]))
    with pytest.raises(ValueError, match="as many ids as logits"):
        Candidates([1, 2], [1.0])


def test_bad_tokens_are_refused() -> None:
    sampler = Sampler(SamplingParams(), N_VOCAB)
    for token in (-1, N_VOCAB):
        with pytest.raises(ValueError, match=f"token {token} is not one of"):
            sampler.accept(token)
    with pytest.raises(ValueError, match="n_vocab"):
        Sampler(SamplingParams(), 0)
    with pytest.raises(ValueError, match="logit_bias names token 2400"):
        Sampler(SamplingParams(logit_bias={N_VOCAB: 1.0}), N_VOCAB)


def test_the_callers_row_is_untouched() -> None:
    row = row_of(9, 3.0, 0, 0.0)
    row.setflags(write=False)
    kept = row.copy()
    for changes in CONFIGURATIONS:
        sampler = Sampler(SamplingParams(**changes, logit_bias={1: 5.0}), N_VOCAB)
        sampler.sample(row)
        np.testing.assert_array_equal(row, kept)
