"""What a generation hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Token(NamedTuple):
    """One token of an answer.

    Attributes
    ----------
    id : int
        Its number.
    text : str
        What it adds to the text: nothing while a character or a possible stop string is incomplete.
    logprob : float or None
        Natural logarithm of its probability, where asked for.
    likeliest : tuple of (int, float)
        The likeliest tokens and their log-probabilities, as many as asked for.
    """

    id: int
    text: str
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass
class Timings:
    """Where the time of a generation went.

    Attributes
    ----------
    n_prompt, n_reused : int
        Tokens of the prompt, and how many of them were there from before.
    prompt_seconds : float
        Until the first token.
    n_generated : int
        Tokens after the first.
    generate_seconds : float
        For these.
    """

    n_prompt: int = 0
    n_reused: int = 0
    prompt_seconds: float = 0.0
    n_generated: int = 0
    generate_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Return the prompt's tokens a second, reused ones left out; 0 before the first token."""
        return (self.n_prompt - self.n_reused) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generate_rate(self) -> float:
        """Return tokens a second after the first; 0 before the second."""
        return self.n_generated / self.generate_seconds if self.generate_seconds else 0.0
