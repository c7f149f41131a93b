"""Graphs that a program builds: one method an op, each node checked as it is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ggml_rpc.errors import GraphError
from ggml_rpc.spec.enums import TensorFlag

from ._ops_attention import AttentionOps
from ._ops_convolution import ConvolutionOps
from ._ops_elementwise import ElementwiseOps
from ._ops_gradient import GradientOps
from ._ops_ik import IkOps
from ._ops_ik_layers import IkLayerOps
from ._ops_matrix import MatrixOps
from ._ops_recurrent import RecurrentOps
from ._ops_reduction import ReductionOps
from ._ops_shape import ShapeOps
from ._ops_views import ViewOps
from ._tensor import Tensor

_VIEWS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})
_STORES = {"IK_SSM_CONV": 4, "DELTA_NET": 6}  # the slot of a source that the op fills with states


class Graph(
    ElementwiseOps,
    MatrixOps,
    AttentionOps,
    ReductionOps,
    ViewOps,
    ShapeOps,
    ConvolutionOps,
    RecurrentOps,
    GradientOps,
    IkOps,
    IkLayerOps,
):
    """A graph: leaves that hold data, and nodes that compute.

    A method of an op's name appends its node and returns the result, whose type and shape follow from its sources.
    Shapes are in ggml's order, dimension 0 (the row) first. Results are named after their op and their number
    (`add-3`); assign `name` for others. Tensors get no place here, and nothing is computed.

    A result has a fresh tensor except where the op writes into one of its sources (`cpy`, `set_rows`, `inplace=True`):
    there it is a view of that.

    Attributes
    ----------
    nodes : list of Tensor
        The nodes in order of creation, which is that of execution.
    inputs : dict of str to Tensor
        Leaves that are set anew for each run.
    outputs : list of Tensor
        Tensors that are read after a run.
    is_compiled : bool
        Whether its tensors were given places, which is done once.

    Raises
    ------
    GraphError
        By every method: the sources, the shapes or the parameters break a rule of the op. The message names the tensor,
        the op and the rule.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Tensor] = {}
        self.outputs: list[Tensor] = []
        self.is_compiled = False
        self._kept: set[int] = set()

    def input(self, name: str, type: str, ne: Sequence[int]) -> Tensor:
        """Return a new leaf that the program sets before each run.

        Parameters
        ----------
        name : str
            Its key in `inputs`.
        type : str
            Name of its type.
        ne : sequence of int
            Its shape.

        Raises
        ------
        GraphError
            If there is one of that name, or no such type or shape.
        """
        if name in self.inputs:
            raise GraphError(f"there is an input {name!r} already: {self.inputs[name]!r}")
        t = Tensor(type, ne, flags=TensorFlag.INPUT, name=name)
        t.device = self._device
        self.inputs[name] = t
        return t

    def output(self, t: Tensor, name: str | None = None) -> Tensor:
        """Keep the contents of `t` after a run, rename it if a name is given, and return it."""
        t.flags |= TensorFlag.OUTPUT
        if not any(t is o for o in self.outputs):
            self.outputs.append(t)
        if name is not None:
            t.name = name
        return t

    def keep(self, t: Tensor) -> Tensor:
        """Let the node `t` run even if nothing needs it, and return it."""
        self._kept.add(t.id)
        return t

    @contextmanager
    def on(self, device: Any) -> Iterator[None]:
        """Let the nodes and inputs made inside be of `device`: the last `on` counts."""
        before, self._device = self._device, device
        try:
            yield
        finally:
            self._device = before

    def reachable(self) -> list[Tensor]:
        """Return the nodes that have an effect, views too, in order of creation.

        These are the outputs, what `keep` marked, what writes into a leaf (a cache), into an output or into memory that
        a later one of them reads, and all that they need.
        """
        needed = {t.id for t in self.outputs} | self._kept
        read = {(t.view_src or t).id for t in self.outputs}  # roots of what the host or nodes further on read
        out = []
        for t in reversed(self.nodes):
            is_view = t.op in _VIEWS
            if t.id not in needed and (is_view or not self._writes(t, read)):
                continue
            out.append(t)
            for s in (*t.src, t.view_src):
                if s is not None:
                    needed.add(s.id)
                    if not is_view:
                        read.add((s.view_src or s).id)
        out.reverse()
        return out

    @staticmethod
    def _writes(t: Tensor, read: set[int]) -> bool:
        """Tell whether `t` changes a leaf, or one of the tensors `read`."""
        roots = [t.view_src]
        if (slot := _STORES.get(t.op)) is not None and slot < len(t.src):
            store = t.src[slot]
            roots.append(store if store is None else store.view_src or store)
        return any(root is not None and (root.op == "NONE" or root.id in read) for root in roots)
