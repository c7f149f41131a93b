"""What a user can say about sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

_SINGLE = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class SamplingParams:
    """Say how the next token is chosen; the defaults are llama-cli's.

    The steps run in llama-cli's order: bias, penalties, top-k, typical, top-p, min-p, temperature, draw.

    Attributes
    ----------
    temperature : float
        Divides the logits before the draw. 0 or less: always the best survivor.
    top_k : int
        Keep the best k; 0: all.
    top_p : float
        Keep the fewest best tokens that hold this share of the probability, 0 to 1; 1: all.
    min_p : float
        Keep tokens with at least this share of the best one's probability, 0 to 1; 0: all.
    typical_p : float
        Keep the fewest tokens that hold this share, those whose surprise is nearest to the mean first; 1: all.
    repeat_penalty : float
        Divides positive logits of recent tokens and multiplies negative ones; above 0; 1: off.
    repeat_last_n : int
        How many tokens are recent; 0: none, -1: all.
    frequency_penalty : float
        Subtracted from a recent token's logit as often as the token stands among the recent ones.
    presence_penalty : float
        Subtracted once from each recent token's logit.
    seed : int or None
        Of the generator, 0 to 2**64 - 1; None: a new one, which ``Sampler.seed`` tells.
    logit_bias : mapping of int to float
        Added to the logits of tokens before all else; -inf bans a token.

    Raises
    ------
    ValueError
        If a value lies outside its range; the text names both.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        def check(name: str, good: bool, accepted: str) -> None:
            if not good:
                raise ValueError(f"{name} must be {accepted}, not {getattr(self, name)!r}")

        for name in ("temperature", "frequency_penalty", "presence_penalty"):
            check(name, abs(getattr(self, name)) <= _SINGLE, "a finite number")
        for name in ("top_p", "min_p", "typical_p"):
            check(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        # The reciprocal must be finite too: positive logits are divided.
        check("repeat_penalty", 1 / _SINGLE <= self.repeat_penalty <= _SINGLE, "a finite number above 0")
        check("top_k", _is_integer(self.top_k) and 0 <= self.top_k < 2**31, "0 (all tokens) or a positive integer")
        check(
            "repeat_last_n",
            _is_integer(self.repeat_last_n) and -1 <= self.repeat_last_n < 2**31,
            "-1 (all tokens), 0 (none) or a positive integer",
        )
        check(
            "seed",
            self.seed is None or (_is_integer(self.seed) and 0 <= self.seed < 2**64),
            "an integer from 0 to 2**64 - 1, or None for a random one",
        )
        bias = {}
        for token, value in self.logit_bias.items():
            if not _is_integer(token) or token < 0:
                raise ValueError(f"logit_bias must name tokens by integers from 0 on, not {token!r}")
            if not (value == -math.inf or abs(value) <= _SINGLE):
                raise ValueError(f"logit_bias of token {token} must be a finite number or -inf, not {value!r}")
            bias[token] = float(value)
        # A mapping of the caller's could change under the sampler.
        object.__setattr__(self, "logit_bias", MappingProxyType(bias))

    @property
    def penalizes(self) -> bool:
        """Tell whether recent tokens' logits are changed."""
        changes = self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        return changes and self.repeat_last_n != 0


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
