"""Parameters say what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from ggml_rpc.llm.sampling import SamplingParams

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (NAN, INF, -INF, 1e39)),
        ("top_k", (-1, 1.5, True, 2**31)),
        ("top_p", (-0.1, 1.1, NAN)),
        ("min_p", (-0.1, 1.1, NAN)),
        ("typical_p", (-0.1, 1.1, NAN)),
        ("repeat_penalty", (0.0, -1.0, NAN, INF, 1e-45)),
        ("repeat_last_n", (-2, 0.5)),
        ("frequency_penalty", (NAN, INF)),
        ("presence_penalty", (NAN, -INF)),
        ("seed", (-1, 2**64, 0.5)),
        ("logit_bias", ({-1: 1.0}, {"a": 1.0}, {1: NAN}, {1: INF})),
    ],
)
def test_bad_values_are_named(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} .*must"):
            SamplingParams(**{name: value})


def test_defaults_are_llama_clis() -> None:
    assert SamplingParams() == SamplingParams(0.8, 40, 0.95, 0.05, 1.0, 1.0, 64, 0.0, 0.0, None, {})


def test_a_bias_is_kept_as_it_was_given() -> None:
    bias = {1: 2.0, 3: -INF}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 5.0
    assert dict(params.logit_bias) == {1: 2.0, 3: -INF}
    assert hash(params) == hash(SamplingParams())
