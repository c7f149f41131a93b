"""The whole graph of one ubatch: inputs, layers on their devices, the head, and what is taken of the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggml_rpc.errors import ContextError
from ggml_rpc.graph.builder import Graph

from .arch.blocks import CacheInputs, HeadGraph, LayerGraph
from .kv_cache import rounded
from .weights import EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggml_rpc.client.device import Device
    from ggml_rpc.graph._tensor import Tensor

    from .kv_cache import KvCache
    from .weights import Weights


@dataclass(frozen=True, slots=True)
class Best:
    """Reduce each row of logits to its k largest, on the device that makes them.

    Parameters
    ----------
    k : int
        How many; 1 is greedy choice: the id alone is computed.
    n_extra : int
        How many logits of given tokens are wanted beside these.
    """

    k: int
    n_extra: int = 0

    def __post_init__(self) -> None:
        """Check the number."""
        if self.k < 1:
            raise ContextError(f"at least one of the logits must be kept, not {self.k}")

    @property
    def id_alone(self) -> bool:
        """Whether no logit is needed."""
        return self.k == 1 and not self.n_extra


@dataclass(frozen=True, slots=True)
class Shape:
    """What a graph depends on: ubatches of one shape share it.

    Parameters
    ----------
    n_tokens : int
        Tokens.
    n_kv : tuple of int
        Cells read of each kind of cache.
    n_outputs : int
        Rows of logits; 0: only the cache is filled.
    best : Best or None
        Reduction of the rows.
    """

    n_tokens: int
    n_kv: tuple[int, ...]
    n_outputs: int
    best: Best | None = None


@dataclass(frozen=True, slots=True)
class UbatchGraph:
    """A graph and its results.

    Attributes
    ----------
    graph : Graph
        Its inputs: `embd` F32 [n_embd, n_tokens] or `tokens` I32, `positions` I32, `wanted` I32 if not all rows are,
        and for kind i of cache `k_rows.i` and `v_rows.i` I64 and `mask.i` [n_kv, n_tokens or more]; `extra` I32
        [n_extra, n_outputs] where logits of given tokens are wanted.
    logits : Tensor or None
        F32 [n_vocab, n_outputs], or [k + n_extra, n_outputs]: the logits of `ids`, then those of `extra`.
    ids : Tensor or None
        I32 [k, n_outputs] in no order.
    """

    graph: Graph
    logits: Tensor | None
    ids: Tensor | None


def build(weights: Weights, cache: KvCache, shape: Shape, factors: Mapping[Device, Tensor]) -> UbatchGraph:
    """Return the graph of a shape.

    Parameters
    ----------
    weights : Weights
        The model.
    cache : KvCache
        Where keys and values lie.
    shape : Shape
        Sizes.
    factors : Mapping of Device to Tensor
        What the frequencies of positions are divided by, on each device; empty: nothing.
    """
    g = Graph()
    hp = weights.hparams
    n = shape.n_tokens
    with g.on(weights.layer_device[0]):
        if EMBEDDING in weights.tensors:
            x = g.get_rows(weights.tensors[EMBEDDING], g.input("tokens", "I32", (n,)))
        else:
            x = g.input("embd", "F32", (hp.n_embd, n))
        if hp.embedding_scale != 1.0:
            x = g.scale(x, hp.embedding_scale)
    positions = g.input("positions", "I32", (n,))
    wanted = g.input("wanted", "I32", (shape.n_outputs,)) if 0 < shape.n_outputs < n else None
    inputs = [_cache_inputs(g, cache, i, shape) for i in range(len(cache.cells))]
    for il, device in enumerate(weights.layer_device):
        with g.on(device):
            part = LayerGraph(
                g,
                hp,
                weights.layer(il),
                device,
                il=il,
                positions=positions,
                inputs=inputs[cache.kind_of_layer[il]],
                cache=cache.layers[il],
                flash=cache.settings.flash,
                factors=factors.get(device),
                wanted=wanted if il == hp.n_layer - 1 else None,
            )
            x = weights.model.architecture.layer(part, x)
    if not shape.n_outputs:
        # What follows the last layer's cache is reached from no output and left out when the graph is compiled.
        return UbatchGraph(g, None, None)
    with g.on(weights.output_device):
        head = HeadGraph(g, hp, weights.head(), weights.output_device)
        logits = weights.model.architecture.head(head, x)
        return _reduced(g, logits, shape.best, weights.output_device)


def _cache_inputs(g: Graph, cache: KvCache, i: int, shape: Shape) -> CacheInputs:
    kind, n, flash = cache.cells[i].kind, shape.n_tokens, cache.settings.flash
    return CacheInputs(
        shape.n_kv[i],
        g.input(f"k_rows.{i}", "I64", (n,)),
        g.input(f"v_rows.{i}", "I64", (n if flash else n * kind.width_v,)),
        g.input(f"mask.{i}", "F16" if flash else "F32", (shape.n_kv[i], rounded(n, cache.mask_multiple))),
    )


def _reduced(g: Graph, logits: Tensor, best: Best | None, device: Device) -> UbatchGraph:
    """Return what is read of the logits."""
    if best is None:
        return UbatchGraph(g, g.output(logits, "logits"), None)
    if best.id_alone:
        return UbatchGraph(g, None, g.output(g.argmax(logits), "ids"))
    n_vocab, n = logits.ne[:2]
    k = min(best.k, n_vocab)
    if device.speaks("TOP_K"):
        ids = g.top_k(logits, k)
    else:
        order = g.argsort(logits, "desc")
        ids = g.cont(g.view(order, (k, n), nb=(order.nb[1],)))
    singles = g.reshape(logits, 1, n_vocab, n)
    chosen = g.get_rows(singles, ids)
    if best.n_extra:
        chosen = g.concat(chosen, g.get_rows(singles, g.input("extra", "I32", (best.n_extra, n))), 1)
    return UbatchGraph(g, g.output(g.reshape(chosen, k + best.n_extra, n), "logits"), g.output(ids, "ids"))
