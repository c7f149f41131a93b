"""What an architecture declares: how its files are read, its weights, and the graph of a layer and of the head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from ggml_rpc.spec.enums import RopeMode

from ..hparams import HParams

if TYPE_CHECKING:
    from ggml_rpc.graph._tensor import Tensor

    from ..gguf_file import GgufFile
    from .blocks import HeadGraph, LayerGraph

INPUT: Final = -1
"""Place of a weight that the host needs before the first layer: token embeddings, factors of positions."""

OUTPUT: Final = -2
"""Place of a weight that is needed after the last layer."""


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """Describe one weight.

    Parameters
    ----------
    name : str
        Name that the graph knows it by, and that of the file's tensor.
    ne : tuple of int
        Its shape in ggml's order.
    layer : int
        The layer it belongs to, INPUT or OUTPUT.
    optional : bool
        A file may lack it.
    source : str
        Name of the file's tensor where it is another one: a tied output matrix is the table of token embeddings.
    """

    name: str
    ne: tuple[int, ...]
    layer: int
    optional: bool = False
    source: str = ""

    @property
    def tensor(self) -> str:
        """Return the name of the file's tensor."""
        return self.source or self.name


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """Describe a weight of every layer: its name after `blk.N.`."""

    name: str
    ne: tuple[int, ...]
    optional: bool = False


class Architecture(ABC):
    """A family of models. Subclasses are stateless; one instance serves all models of its kind."""

    name: ClassVar[str]
    rope_mode: ClassVar[RopeMode] = RopeMode.NEOX

    def hparams(self, file: GgufFile) -> HParams:
        """Return a model's settings.

        Raises
        ------
        ModelError
            If the file states what cannot be; see `HParams.from_gguf`.
        """
        return HParams.from_gguf(file, self.rope_mode)

    def weights(self, hp: HParams, names: Container[str]) -> list[WeightSpec]:
        """Return what the graph needs.

        Parameters
        ----------
        hp : HParams
            The model's settings.
        names : container of str
            The file's tensors: files of one architecture may hold fused or separate matrices.
        """
        specs = [WeightSpec("token_embd.weight", (hp.n_embd, hp.n_vocab), INPUT)]
        half = hp.rope.n_dims // 2
        specs += [WeightSpec(name, (half,), INPUT, optional=True) for name in self.rope_factors(hp)]
        for il in range(hp.n_layer):
            prefix = f"blk.{il}."
            present = _Prefixed(names, prefix)
            specs += [WeightSpec(prefix + w.name, w.ne, il, w.optional) for w in self.layer_weights(hp, il, present)]
        specs.append(WeightSpec("output_norm.weight", (hp.n_embd,), OUTPUT))
        tied = "" if self.may_untie and "output.weight" in names else "token_embd.weight"
        specs.append(WeightSpec("output.weight", (hp.n_embd, hp.n_vocab), OUTPUT, source=tied))
        specs += self.head_weights(hp)
        return specs

    may_untie: ClassVar[bool] = True
    """A file may hold an output matrix of its own."""

    def rope_factors(self, hp: HParams) -> tuple[str, ...]:
        """Return the names of the tensors that divide the frequencies, for `HostWeights` to choose from."""
        return ()

    def head_weights(self, hp: HParams) -> list[WeightSpec]:
        """Return what the head needs beyond its norm and its matrix."""
        return []

    @abstractmethod
    def layer_weights(self, hp: HParams, il: int, names: Container[str]) -> Iterator[LayerWeight]:
        """Yield the weights of layer `il`; `names` are the tensors that the file has for it, without prefix."""

    @abstractmethod
    def layer(self, b: LayerGraph, x: Tensor) -> Tensor:
        """Return a layer's output [n_embd, T] for its input `x`; the last layer goes on with the wanted rows only."""

    def head(self, b: HeadGraph, x: Tensor) -> Tensor:
        """Return the logits [n_vocab, n_outputs] for the last layer's output."""
        return b.logits(b.norm(x, "output_norm"))


class _Prefixed:
    """Names of one layer in a container of all names."""

    def __init__(self, names: Container[str], prefix: str) -> None:
        self._names = names
        self._prefix = prefix

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self._names
