"""What a sampler needs to know of the logits, and what it is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggml_rpc.errors import RpcError

_NONE = np.empty(0, np.int32)


class Undecided(RpcError):
    """Report that tokens of equal logits stand at the cut of top-k: only the whole row decides which of them stay.

    Nothing was drawn: ``Sampler.sample`` with the whole row gives what it would have given at once.
    """


@dataclass(frozen=True)
class Need:
    """Say what must be fetched for the next token.

    Attributes
    ----------
    kind : str
        ``"argmax"``: the id of the best logit. ``"top"``: the best `k` logits and their ids, and the logits of
        `extra_ids`. ``"full"``: all logits.
    k : int
        How many of the best; 1 for ``"argmax"``, 0 for ``"full"``.
    extra_ids : numpy.ndarray of int32
        Tokens whose own logits are needed wherever they stand; ids may repeat. The length is a multiple of 64, so that
        a graph that fetches them seldom changes its shape.
    """

    kind: str
    k: int = 0
    extra_ids: NDArray[np.int32] = field(default_factory=lambda: _NONE, compare=False)

    argmax: ClassVar[Need]
    full: ClassVar[Need]

    @classmethod
    def top(cls, k: int, extra_ids: NDArray[np.int32] = _NONE) -> Need:
        """Return the need of the best `k` logits and those of `extra_ids`."""
        return cls("top", k, extra_ids)


Need.argmax = Need("argmax", 1)
Need.full = Need("full")


class Candidates:
    """Hold the best logits of a row.

    Parameters
    ----------
    ids : array of int32, shape (k,)
        The tokens of the best k logits, in any order.
    logits : array of float32, shape (k,)
        Their logits. For ``Need.argmax`` any number does, as nothing is compared with it.
    extra_logits : array of float32, shape (n,)
        Logits of ``Need.extra_ids``, in that order.

    Raises
    ------
    ValueError
        If the arrays do not fit together.
    """

    __slots__ = ("extra_logits", "ids", "logits")

    ids: NDArray[np.int32]
    logits: NDArray[np.float32]
    extra_logits: NDArray[np.float32]

    def __init__(self, ids: ArrayLike, logits: ArrayLike, extra_logits: ArrayLike = ()) -> None:
        self.ids = np.ascontiguousarray(ids, np.int32)
        self.logits = np.ascontiguousarray(logits, np.float32)
        self.extra_logits = np.ascontiguousarray(extra_logits, np.float32)
        if self.ids.ndim != 1 or self.ids.shape != self.logits.shape or self.extra_logits.ndim != 1:
            raise ValueError(
                "candidates need as many ids as logits, in one dimension: "
                f"shapes {self.ids.shape}, {self.logits.shape}, {self.extra_logits.shape}"
            )

    @classmethod
    def of(cls, row: NDArray[np.float32], need: Need) -> Candidates:
        """Return what a device would answer to a need, from a whole row."""
        from ._select import top_k  # noqa: PLC0415

        ids, logits = top_k(row, max(1, need.k))
        return cls(ids, logits, row[need.extra_ids])
