"""Rows of the embedding table, on the host: gathered from the mapped file, converted on this machine's CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.graph.builder import Graph

if TYPE_CHECKING:
    from ggml_rpc.client.device import Device
    from ggml_rpc.client.schedule import Plan
    from ggml_rpc.graph._tensor import Tensor

    from .gguf_file import GgufTensor


class Embedding:
    """Look tokens up in a table that stays in its file.

    Rows of F32 and F16 are converted by NumPy. Those of other types are copied to a small local buffer and go through
    GET_ROWS there, one graph for each number of tokens that comes again.

    Parameters
    ----------
    table : GgufTensor
        [n_embd, n_vocab].
    device : Device
        A device of this machine.
    keep : int
        Converted rows to keep for single tokens: text repeats itself, and a row that is kept wakes no thread.
    """

    def __init__(self, table: GgufTensor, device: Device, *, keep: int = 1024) -> None:
        self._keep = keep
        self.n_embd, self.n_vocab = table.ne[:2]
        self._type = table.type
        self._device = device
        plain: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
        self._plain = plain.get(table.type)
        rows = table.data.reshape(self.n_vocab, -1)
        self._rows = rows if self._plain is None else rows.view(self._plain)
        self._kept: dict[int, NDArray[np.float32]] = {}
        self._plans: dict[int, tuple[Plan, Tensor, NDArray[np.uint8]]] = {}

    def lookup(self, tokens: Sequence[int] | NDArray[np.integer], out: NDArray[np.float32]) -> None:
        """Write the tokens' rows to `out`.

        Parameters
        ----------
        tokens : sequence of int
            Ids within the vocabulary.
        out : ndarray
            float32 [n, n_embd].
        """
        if self._plain is not None:
            out[...] = self._rows[tokens]
            return
        n = len(tokens)
        if n == 1:
            token = int(tokens[0])
            kept = self._kept.get(token)
            if kept is None:
                if len(self._kept) >= self._keep:
                    self._kept.clear()
                self._convert(tokens, out)
                self._kept[token] = out[0].copy()
            else:
                out[0] = kept
            return
        self._convert(tokens, out)

    def _convert(self, tokens: Sequence[int] | NDArray[np.integer], out: NDArray[np.float32]) -> None:
        n = len(tokens)
        found = self._plans.get(n)
        if found is None:
            found = self._compile(n)
            # One for single tokens, one for whole ubatches, one for what is left of the last prompt.
            if len(self._plans) > 2:
                del self._plans[next(k for k in self._plans if k != 1)]
            self._plans[n] = found
        plan, converted, raw = found
        np.take(self._rows, tokens, axis=0, out=raw)
        plan.set_bytes("rows", raw.data)
        plan.run()
        device, placed = plan.where(converted)
        device.start_read(placed, out.data.cast("B")).result()

    def _compile(self, n: int) -> tuple[Plan, Tensor, NDArray[np.uint8]]:
        g = Graph()
        table = g.input("rows", self._type, (self.n_embd, n))
        ids = self._device.tensor(np.arange(n, dtype=np.int32), name="ids")
        converted = g.output(g.get_rows(table, ids))
        raw = np.empty((n, self._rows.shape[1]), np.uint8)
        return self._device.compile(g), converted, raw
