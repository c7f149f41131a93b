"""A model at work: tokens in, logits out, with the keys and values of all tokens so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.client.device import Buffer
from ggml_rpc.client.local import local_devices
from ggml_rpc.client.schedule import Workspace, compile_graph
from ggml_rpc.errors import ComputeError, ContextError, ModelError
from ggml_rpc.graph._tensor import Tensor

from .batch import Ubatch, Wanted, split
from .embedding import Embedding
from .kv_cache import CacheSettings, KvCache, padded
from .pipeline import Bytes, Outputs, Pipeline, Staged
from .ubatch_graph import Best, Shape, build
from .weights import EMBEDDING

if TYPE_CHECKING:
    from ggml_rpc.client.device import Device

    from .weights import Weights

MAX_CTX = 1 << 24
"""Most positions of a context: beyond any model's training, and the masks of so many still fit into memory here."""

_PLANS_KEPT = 32
"""Compiled graphs of a context: one each 256 positions while it grows, and those of a prompt."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the model says after some tokens, one row each.

    Attributes
    ----------
    logits : ndarray or None
        float32 [rows, n_vocab]; with `Best` [rows, k], the largest first; None for greedy choice.
    ids : ndarray or None
        int32 [rows, k]: the tokens that the logits are of; None if they are of all.
    extra : ndarray or None
        float32 [rows, n_extra]: the logits of the tokens that were asked for beside them.
    """

    logits: NDArray[np.float32] | None
    ids: NDArray[np.int32] | None
    extra: NDArray[np.float32] | None = None


class _Runner:
    """A compiled graph of one shape."""

    def __init__(self, staged: Staged) -> None:
        self.staged = staged
        self.bound = False
        self._copies: list[tuple[Bytes, Bytes]] = []
        self._writes: list[tuple[Callable[[Tensor, memoryview], None], Tensor, memoryview]] = []

    def bind(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Remember the arrays that `step` sends.

        Inputs lie beside each other in a device's memory: they are sent as one tensor of bytes, gaps included.
        """
        by_device: dict[Device, list[tuple[Tensor, Bytes]]] = {}
        for name, places in self.staged.plan.inputs.items():
            for device, t in places:
                by_device.setdefault(device, []).append((t, as_bytes(arrays[name])))
        for device, inputs in by_device.items():
            inputs.sort(key=lambda x: x[0].offset)
            group: list[tuple[Tensor, Bytes]] = []
            for t, data in inputs:
                if group and t.offset - _end(group[-1][0]) >= device.alignment:
                    self._add(device, group)
                    group = []
                group.append((t, data))
            self._add(device, group)
        self.bound = True

    def _add(self, device: Device, group: list[tuple[Tensor, Bytes]]) -> None:
        first = group[0][0]
        begin, place = first.offset, first.buffer
        assert place is not None
        together = np.zeros(_end(group[-1][0]) - begin, np.uint8)
        for t, data in group:
            at = t.offset - begin
            self._copies.append((together[at : at + len(data)], data))
        self._writes.append((device.write, Tensor("I8", (together.size,)).put(place, begin), together.data))

    def step(self) -> Outputs:
        """Run with the contents that the bound arrays have now."""
        for staged, data in self._copies:
            staged[:] = data
        for write, t, bytes_ in self._writes:
            write(t, bytes_)
        return self.staged.run({})


def _end(t: Tensor) -> int:
    return t.offset + t.nbytes


class Context:
    """Positions, cache and compiled graphs of one sequence.

    Parameters
    ----------
    weights : Weights
        The model.
    n_ctx : int
        Most positions; rounded up to a multiple of 256. 0: as many as the model was trained for.
    n_batch : int
        Most tokens that are under way at once.
    n_ubatch : int
        Most tokens of one graph.
    flash_attn : bool
        Use fused attention.
    type_k, type_v : str
        Types of the cache, see `CACHE_TYPES`; a quantised V needs flash attention.
    whole_window : bool
        Layers with a sliding window keep all positions, so that `cut` never has to begin anew.
    host : Device, optional
        A device of this machine for the lookup of tokens; by default a CPU device of its own.

    Raises
    ------
    ContextError
        If the settings do not suit the model.
    OutOfMemory
        If a device has no room for cache and intermediate results; nothing stays reserved.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        flash_attn: bool = False,
        type_k: str = "F16",
        type_v: str = "F16",
        whole_window: bool = False,
        host: Device | None = None,
    ) -> None:
        hp = weights.hparams
        if n_ctx < 0 or n_batch < 1 or n_ubatch < 1:
            raise ContextError(f"n_ctx {n_ctx}, n_batch {n_batch}, n_ubatch {n_ubatch}: sizes must be positive")
        if n_ctx > MAX_CTX:
            raise ContextError(f"a context of {n_ctx} tokens: at most {MAX_CTX} are possible")
        n_ctx = padded(n_ctx or hp.n_ctx_train)
        self.weights = weights
        self.n_batch = min(n_batch, n_ctx)
        self.n_ubatch = min(n_ubatch, self.n_batch)
        settings = CacheSettings(n_ctx, self.n_ubatch, flash_attn, type_k.upper(), type_v.upper(), whole_window)
        self.cache = KvCache(hp, settings, weights.layer_device)
        self._factors: dict[Device, Tensor] = {}
        self._embedding: Embedding | None = None
        self._workspaces = {device: Workspace(device) for device in weights.devices}
        self._runners: dict[Shape, _Runner] = {}
        self._token = np.zeros(1, np.int32)
        self._position = np.zeros(1, np.int32)
        self._embd = np.zeros((1, hp.n_embd), np.float32)
        self._extra: dict[int, NDArray[np.int32]] = {}
        try:
            self._factors = _rope_factors(weights, n_ctx)
            if EMBEDDING not in weights.tensors:
                self._embedding = Embedding(weights.model.file.tensors[EMBEDDING], host or local_devices(threads=1)[0])
            self._reserve()
        except BaseException:
            # Not left to the collector: the error refers to all of this, and may be kept while others want the memory.
            self.close()
            raise

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- State ---------------------------------------------------------------------------------------------------

    @property
    def n_ctx(self) -> int:
        """Return the most positions."""
        return self.cache.n_ctx

    @property
    def n_past(self) -> int:
        """Return how many positions are held."""
        return self.cache.n_past

    def cut(self, position: int) -> int:
        """Forget `position` and all after it.

        Returns
        -------
        int
            Positions left: `position`, or 0 if layers with a window no longer hold what a token there must see. The
            tokens from there on have to be decoded again.
        """
        return self.cache.cut(max(position, 0))

    def clear(self) -> None:
        """Forget all positions."""
        self.cache.cut(0)

    def close(self) -> None:
        """Give all memory of the cache and of intermediate results back."""
        self._runners.clear()
        for device in self.weights.devices:
            device.drop_plans()
        # Not left to the collector: what was raised when a server was lost still refers to all of this.
        for workspace in self._workspaces.values():
            workspace.free()
        self._workspaces.clear()
        for t in self._factors.values():
            if isinstance(t.buffer, Buffer):
                t.buffer.free()
        self._factors = {}
        self.cache.free()

    def compute_bytes(self) -> dict[Device, int]:
        """Return what intermediate results take on each device."""
        return {device: workspace.size for device, workspace in self._workspaces.items()}

    # ---- Decoding ------------------------------------------------------------------------------------------------

    def decode(
        self,
        tokens: Sequence[int] | NDArray[np.integer],
        *,
        logits: Wanted = "last",
        best: Best | None = None,
        extra: Sequence[int] | NDArray[np.integer] = (),
    ) -> Decoded:
        """Take tokens in after those held so far.

        Parameters
        ----------
        tokens : sequence of int
            Ids, at least one.
        logits : "last", "all", sequence of int or None
            Tokens after which the model is asked; indices into `tokens`, rising.
        best : Best, optional
            Reduce the rows to their largest on the device that makes them, so that only those cross the network.
        extra : sequence of int
            Tokens whose logits are wanted beside these, `best.n_extra` of them, in every row.

        Returns
        -------
        Decoded
            A row for each token asked for.

        Raises
        ------
        ContextError
            If the tokens do not fit into the context or are not in the vocabulary. Nothing has changed then.
        ValueError
            If the context was closed.
        ConnectionLost, DeviceError
            If a device fails, or names tokens that there are not. Positions are those from before, or none if layers
            with a window had to overwrite some.
        """
        ids = np.asarray(tokens, np.int64).reshape(-1)
        self._check(ids)
        self._take_extra(best, extra)
        first = self.n_past
        done = False
        try:
            if len(ids) == 1 and _asks_for_one(logits):
                result = self._step(int(ids[0]), first, best)
            else:
                result = self._batch(ids, first, logits, best)
            done = True
        finally:
            self.cache.n_past = first + len(ids)
            if not done:
                self.cache.cut(first)
        return result

    def _check(self, ids: NDArray[np.int64]) -> None:
        n_vocab = self.weights.hparams.n_vocab
        if not self._workspaces:
            raise ValueError("the context was closed")
        if not ids.size:
            raise ContextError("there are no tokens to decode")
        if self.n_past + ids.size > self.n_ctx:
            raise ContextError(
                f"{ids.size} tokens after {self.n_past} do not fit into the context of {self.n_ctx}:"
                " ask for a larger one, or shorten the prompt"
            )
        low, high = (int(ids[0]),) * 2 if ids.size == 1 else (int(ids.min()), int(ids.max()))
        if low < 0 or high >= n_vocab:
            raise ContextError(f"token {low if low < 0 else high} is not in the vocabulary of {n_vocab}")

    def _take_extra(self, best: Best | None, extra: Sequence[int] | NDArray[np.integer]) -> None:
        """Note the tokens whose logits are wanted; steps send them from the same array each time."""
        n_extra = 0 if best is None else best.n_extra
        if len(extra) != n_extra:
            raise ContextError(f"logits of {n_extra} given tokens are to be kept, but {len(extra)} tokens are given")
        if not n_extra:
            return
        given = np.asarray(extra, np.int64)
        if given.min() < 0 or given.max() >= self.weights.hparams.n_vocab:
            raise ContextError(
                f"a token whose logit is wanted is not in the vocabulary of {self.weights.hparams.n_vocab}"
            )
        self._extra.setdefault(n_extra, np.zeros((1, n_extra), np.int32))[0] = given

    def _step(self, token: int, position: int, best: Best | None) -> Decoded:
        """Decode one token: no graph is built and no array made but when the context has grown by 256."""
        for cells in self.cache.cells:
            cells.step(position)
        shape = Shape(1, tuple(cells.n_kv for cells in self.cache.cells), 1, best)
        runner = self._runners.get(shape)
        if runner is None:
            runner = self._compile(shape)
        if not runner.bound:
            runner.bind(self._step_arrays(best))
        self._position[0] = position
        self._token[0] = token
        if self._embedding is not None:
            self._embedding.lookup(self._token, self._embd)
        return self._decoded([runner.step()], best)

    def _step_arrays(self, best: Best | None) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {"tokens": self._token, "embd": self._embd, "positions": self._position}
        if best is not None and best.n_extra:
            arrays["extra"] = self._extra[best.n_extra]
        for i, cells in enumerate(self.cache.cells):
            arrays[f"k_rows.{i}"] = cells.step_k
            arrays[f"v_rows.{i}"] = cells.step_v
            arrays[f"mask.{i}"] = cells.step_mask[: cells.n_kv]
        return arrays

    def _batch(self, ids: NDArray[np.int64], first: int, wanted: Wanted, best: Best | None) -> Decoded:
        ubatches = split(len(ids), self.n_ubatch, wanted)
        results: list[Outputs | Future[Outputs]] = []
        with Pipeline() as pipeline:
            under_way = 0
            for u in ubatches:
                if under_way + u.n_tokens > self.n_batch:
                    pipeline.drain()
                    under_way = 0
                under_way += u.n_tokens
                runner, inputs = self._prepare(u, ids, first, best)
                staged = runner.staged
                outputs: Outputs | Future[Outputs]
                if staged.flows and len(staged.stages) > 1 and len(ubatches) > 1:
                    outputs = pipeline.submit(staged, inputs)
                else:
                    pipeline.drain()
                    outputs = staged.run(inputs)
                if u.rows.size:
                    results.append(outputs)
            pipeline.drain()
        if not results:
            for device in self.weights.devices:
                device.synchronize()
        return self._decoded([r.result() if isinstance(r, Future) else r for r in results], best)

    def _prepare(
        self, u: Ubatch, ids: NDArray[np.int64], first: int, best: Best | None
    ) -> tuple[_Runner, dict[str, Bytes]]:
        """Take a ubatch's positions in and return its graph and inputs."""
        n, position = u.n_tokens, first + u.start
        rows = [cells.append(position, n) for cells in self.cache.cells]
        n_kv = tuple(cells.n_kv for cells in self.cache.cells)
        shape = Shape(n, n_kv, len(u.rows), best if u.rows.size else None)
        runner = self._runners.get(shape)
        if runner is None:
            runner = self._compile(shape)
        tokens = ids[u.start : u.stop]
        arrays: dict[str, NDArray[Any]] = {
            "positions": np.arange(position, position + n, dtype=np.int32),
            "wanted": u.rows,
        }
        if best is not None and best.n_extra:
            arrays["extra"] = np.repeat(self._extra[best.n_extra], len(u.rows), axis=0)
        if self._embedding is None:
            arrays["tokens"] = tokens.astype(np.int32)
        else:
            arrays["embd"] = np.empty((n, self.weights.hparams.n_embd), np.float32)
            self._embedding.lookup(tokens, arrays["embd"])
        for i, (cells, (k_rows, v_rows)) in enumerate(zip(self.cache.cells, rows, strict=True)):
            arrays[f"k_rows.{i}"] = k_rows
            arrays[f"v_rows.{i}"] = v_rows
            arrays[f"mask.{i}"] = cells.mask(position, n)
        needed = runner.staged.plan.inputs
        return runner, {name: as_bytes(array) for name, array in arrays.items() if needed.get(name)}

    def _decoded(self, parts: Sequence[Outputs], best: Best | None) -> Decoded:
        """Wait for the outputs of graphs, in order, and join them."""
        width = self.weights.hparams.n_vocab if best is None else min(best.k, self.weights.hparams.n_vocab)
        n_extra = 0 if best is None else best.n_extra
        logits: list[NDArray[np.float32]] = []
        ids: list[NDArray[np.int32]] = []
        for outputs in parts:
            for t, data, arrival in outputs:
                arrival.result()
                if t.type == "F32":
                    logits.append(np.frombuffer(data, np.float32).reshape(-1, width + n_extra))
                else:
                    ids.append(np.frombuffer(data, np.int32).reshape(-1, width))
        values, tokens = _joined(logits), _joined(ids)
        if tokens is not None:
            self._check_best(tokens)
        if values is not None and tokens is not None:
            values, extra = values[:, :width], values[:, width:]
            order = np.argsort(-values, axis=1, kind="stable")
            values, tokens = np.take_along_axis(values, order, 1), np.take_along_axis(tokens, order, 1)
            return Decoded(values, tokens, extra if n_extra else None)
        return Decoded(values, tokens)

    def _check_best(self, ids: NDArray[np.int32]) -> None:
        n_vocab = self.weights.hparams.n_vocab
        if int(ids.view(np.uint32).max()) >= n_vocab:  # negative ones are beyond all others
            wrong = ids[(ids < 0) | (ids >= n_vocab)][0]
            raise ComputeError(f"{self.weights.output_device} names token {wrong} among the best of {n_vocab}")

    # ---- Graphs --------------------------------------------------------------------------------------------------

    def _compile(self, shape: Shape) -> _Runner:
        built = build(self.weights, self.cache, shape, self._factors)
        sizes = self.compute_bytes()
        plan = compile_graph(built.graph, self.weights.layer_device[0], workspaces=self._workspaces)
        if sizes != self.compute_bytes():
            # Graphs from before hold on to the smaller memory: better compile them again than keep both.
            self._runners.clear()
        while len(self._runners) >= _PLANS_KEPT:
            del self._runners[next(iter(self._runners))]
        outputs = [t for t in (built.logits, built.ids) if t is not None]
        runner = self._runners[shape] = _Runner(Staged(plan, outputs))
        return runner

    def _reserve(self) -> None:
        """Reserve memory for the largest graph, so that a lack of it shows now and not in the midst of a text."""
        n_kv = tuple(cells.kind.n_cells for cells in self.cache.cells)
        self._compile(Shape(self.n_ubatch, n_kv, 1))
        self._runners.clear()


_Row = TypeVar("_Row", np.float32, np.int32)


def _joined(parts: list[NDArray[_Row]]) -> NDArray[_Row] | None:
    """Return rows in one array; None if there are none."""
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def as_bytes(array: NDArray[Any]) -> Bytes:
    """Return an array's memory as bytes; the array must be contiguous to be changed through it later."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _asks_for_one(wanted: Wanted) -> bool:
    """Tell whether the one token of a batch is asked for."""
    if wanted is None or isinstance(wanted, str):
        return wanted in ("last", "all")
    return len(wanted) == 1 and wanted[0] == 0


def _rope_factors(weights: Weights, n_ctx: int) -> dict[Device, Tensor]:
    """Return what the frequencies of positions are divided by, on each device with layers."""
    model = weights.model
    names = {spec.name for spec in model.specs}
    hp = weights.hparams
    known = model.architecture.rope_factors(hp)
    if len(known) == 2:
        known = known[:1] if n_ctx > hp.rope.n_ctx_orig else known[1:]
    name = next((name for name in known if name in names), None)
    if name is None:
        return {}
    found = model.file.tensors[name]
    if found.type != "F32":
        raise ModelError(f"{found.path}: tensor {name!r} is {found.type}, but must be F32")
    values = found.data.view("<f4")
    return {device: device.tensor(values, name=name) for device in dict.fromkeys(weights.layer_device)}
