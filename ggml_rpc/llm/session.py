"""One sequence of tokens at work, kept going when a server is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ContextError, PlacementError, RpcError

from .context import Context, Decoded
from .ubatch_graph import Best

if TYPE_CHECKING:
    from .model import Model
    from .placement import Placement

log = logging.getLogger(__name__)

OnLoss = Literal["error", "redistribute"]


@dataclass(frozen=True)
class Redistribution:
    """What was done about the loss of servers.

    Attributes
    ----------
    cause : RpcError
        How the loss showed.
    lost : tuple of str
        Devices that are gone.
    placement : Placement
        Where everything is now.
    n_tokens : int
        Tokens that are decoded again.
    seconds : float
        For placing and loading, without decoding again.
    """

    cause: RpcError
    lost: tuple[str, ...]
    placement: Placement
    n_tokens: int
    seconds: float


class Session:
    """A context, the tokens it holds, and what to do when a server is gone.

    Parameters
    ----------
    model : Model
        Open; closed when a loss ends the session.
    on_loss : str
        `"error"`: close the model and raise; `"redistribute"`: go on with the devices that are left.
    on_redistribution : callable, optional
        Told of each redistribution.

    Attributes
    ----------
    tokens : list of int
        What the context holds.

    Raises
    ------
    ContextError, OutOfMemory, DeviceError
        From the context.
    ConnectionLost, DeadlineExceeded, ServerRefused, ProtocolError, PlacementError
        As `decode`.
    """

    def __init__(
        self,
        model: Model,
        *,
        on_loss: OnLoss = "error",
        on_redistribution: Callable[[Redistribution], None] | None = None,
    ) -> None:
        if on_loss not in ("error", "redistribute"):
            raise ValueError(f"on_loss must be 'error' or 'redistribute', not {on_loss!r}")
        self.model = model
        self.tokens: list[int] = []
        self._on_loss = on_loss
        self._on_redistribution = on_redistribution
        self._lost = {device.name for device in model.devices.lost()}
        self._context: Context | None = None
        try:
            self._context = model.context()
        except RpcError as e:
            self._recover(e, [])

    @property
    def context(self) -> Context:
        """Return the context of now.

        Raises
        ------
        ValueError
            If the session was closed, by the loss of a server perhaps.
        """
        if self._context is None:
            raise ValueError("the model was closed")
        return self._context

    @property
    def n_ctx(self) -> int:
        """Return the most tokens that it can hold."""
        return self.context.n_ctx

    def close(self) -> None:
        """Free the context. Safe to call twice."""
        context, self._context = self._context, None
        if context is not None:
            context.close()
        self.tokens = []

    def rewind(self, tokens: Sequence[int]) -> int:
        """Forget what is not the beginning of these tokens, and at least the last of them.

        Returns
        -------
        int
            How many of the tokens are held.
        """
        common = 0
        for mine, theirs in zip(self.tokens, tokens[:-1], strict=False):
            if mine != theirs:
                break
            common += 1
        kept = self.context.cut(common)
        del self.tokens[kept:]
        return kept

    def decode(
        self, tokens: Sequence[int], best: Best | None = None, extra: Sequence[int] | NDArray[np.integer] = ()
    ) -> Decoded:
        """Take tokens in and return the logits after the last; see `Context.decode`.

        If a server is lost the model's layers there are brought elsewhere and all tokens are decoded anew, where
        `on_loss` says so.

        Raises
        ------
        ContextError
            If the tokens do not fit into the context.
        ConnectionLost, DeadlineExceeded, ServerRefused, ProtocolError
            If a server is lost and `on_loss` is "error"; the model is closed then.
        PlacementError
            If what it held does not fit elsewhere; the model is closed then.
        """
        new = list(tokens)
        if len(self.tokens) + len(new) > self.n_ctx:
            raise ContextError(
                f"{len(new)} tokens after {len(self.tokens)} do not fit into the context of {self.n_ctx}"
            )
        while True:
            try:
                # In pieces, so that an interrupted prompt is not lost whole.
                step = self.context.n_batch
                while len(new) > step:
                    self.context.decode(new[:step], logits=None)
                    self.tokens += new[:step]
                    del new[:step]
                result = self.context.decode(new, logits="last", best=best, extra=extra)
            except RpcError as e:
                new = self._recover(e, self.tokens + new)
            else:
                self.tokens += new
                return result

    def again(self) -> Decoded:
        """Return all logits after the last token: it is decoded once more."""
        tokens = list(self.tokens)
        kept = self.rewind(tokens)
        return self.decode(tokens[kept:])

    # ---- Losses --------------------------------------------------------------------------------------------------

    def _recover(self, cause: RpcError, known: list[int]) -> list[int]:
        """Go on without the servers that are gone; return the tokens to decode."""
        start = time.perf_counter()
        first = cause
        while True:
            gone = {device.name for device in self.model.devices.lost()}
            new = gone - self._lost
            if not new:
                if cause is not first:
                    self._give_up()
                raise cause
            if self._on_loss == "error":
                self._give_up()
                raise cause
            log.warning("%s; bringing what %s held elsewhere", cause, ", ".join(sorted(new)))
            self._lost = gone
            self.close()
            try:
                self.model.redistribute()
                self._context = self.model.context()
                break
            except PlacementError as e:
                self._give_up()
                raise PlacementError(f"{first}; without it {e.args[0].splitlines()[0]}", e.table) from first
            except RpcError as e:
                cause = e  # another server perhaps
        if self._on_redistribution is not None:
            seconds = time.perf_counter() - start
            lost = tuple(sorted(gone))
            self._on_redistribution(Redistribution(first, lost, self.model.placement, len(known), seconds))
        return known

    def _give_up(self) -> None:
        self.close()
        self.model.close()
