"""Merge text into tokens by the tokens' scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class ScoreMerger:
    """Hold a vocabulary and merge UTF-8 text into its tokens, the best score first.

    Parameters
    ----------
    tokens : sequence of bytes
        Text of each token, no two alike.
    scores : numpy.ndarray
        Score of each token, float32, shape (tokens,), no NaN.
    byte_ids : sequence of int
        The token for each of the 256 bytes, -1 where there is none.

    Raises
    ------
    ModelError
        If the arguments do not fit together.
    """

    def __init__(self, tokens: Sequence[bytes], scores: NDArray[np.float32], byte_ids: Sequence[int]) -> None: ...
    def encode(self, text: bytes) -> list[int]:
        """Return the token ids of UTF-8 text.

        Raises
        ------
        ModelError
            If a character is no token and one of its bytes has none either, or the text exceeds 1 GiB.
        """
