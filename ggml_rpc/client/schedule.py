"""A graph over several devices -> splits of consecutive nodes, with what is copied between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ggml_rpc.errors import GraphError
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.spec.enums import TensorFlag

from .allocator import FOREVER, assign, root_of
from .device import Buffer, BytesLike, Device, DevicePlan, align_up, to_bytes

if TYPE_CHECKING:
    from ggml_rpc.graph.builder import Graph

VIEW_OPS = frozenset({"VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"})


class Workspace:
    """Compute memory of one device that several plans use in turn: what one leaves there the next overwrites.

    Parameters
    ----------
    device : Device
        Where it lies.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._buffer: Buffer | None = None

    @property
    def size(self) -> int:
        """Bytes reserved so far."""
        return 0 if self._buffer is None else self._buffer.size

    def reserve(self, size: int) -> Buffer:
        """Return a buffer of at least `size` bytes; plans made before keep the smaller one that they had."""
        if self._buffer is None or self._buffer.size < size:
            self._buffer = None
            self._buffer = self.device.allocate(size)
        return self._buffer

    def free(self) -> None:
        """Give the memory back now; plans that were made with it must not run any more."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.free()


@dataclass(eq=False)
class Transfer:
    """A tensor that a split needs from another device.

    Attributes
    ----------
    source : Tensor
        Where it was made.
    copy : Tensor
        The leaf on the split's device that takes its contents.
    """

    source: Tensor
    copy: Tensor
    origin: Device

    def run(self, device: Device) -> None:
        """Bring the contents over; waits for the device that makes them."""
        if self.origin.shares_with(device) and self.origin.copy(self.source, self.copy):
            return
        device.write(self.copy, self.origin.read_bytes(self.source))


@dataclass(eq=False)
class Split:
    """Consecutive nodes on one device."""

    device: Device
    nodes: list[Tensor] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    plan: DevicePlan | None = None  # set when the nodes have their places

    def run(self) -> None:
        """Start the nodes; what must be copied in is there already."""
        if self.plan is not None:
            self.plan.run()


class Plan:
    """A compiled graph. Made by `compile_graph` or `Device.compile`.

    Attributes
    ----------
    splits : list of Split
        In the order in which they run.
    sizes : dict of Device to int
        Bytes of compute memory on each device.
    """

    def __init__(
        self,
        splits: list[Split],
        inputs: Mapping[str, list[tuple[Device, Tensor]]],
        placed: Mapping[Tensor, tuple[Device, Tensor]],
        sizes: Mapping[Device, int],
    ) -> None:
        self.splits = splits
        self.inputs = inputs
        self.sizes = sizes
        self._placed = placed

    def set(self, name: str, values: ArrayLike) -> None:
        """Give a host input its values, on every device that reads it.

        Parameters
        ----------
        name : str
            As in `Graph.input`.
        values : array_like
            In NumPy's shape of the input, leading dimensions of 1 apart, or flat; converted to its type.

        Raises
        ------
        GraphError
            If the graph has no such input, or the shape differs.
        """
        places = self.inputs.get(name)
        if places is None:
            raise GraphError(f"the graph has no input {name!r}; it has {', '.join(self.inputs) or 'none'}")
        if not places:
            return
        t = places[0][1]
        array = np.asarray(values)
        if array.size != t.n_elements:
            raise GraphError(f"input {name!r} has {t.n_elements} elements, {array.size} were given")
        if array.ndim > 1 and _trimmed(array.shape) != _trimmed(t.shape):
            raise GraphError(f"input {name!r} has the shape {t.shape}, an array of {array.shape} was given")
        self.set_bytes(name, to_bytes(array, t.type))

    def set_bytes(self, name: str, data: BytesLike) -> None:
        """Give a host input its contents as bytes in its own type."""
        for device, t in self.inputs[name]:
            device.write(t, data)

    def run(self) -> None:
        """Run the splits in their order; waits for nothing but what must be copied between devices."""
        for split in self.splits:
            for transfer in split.transfers:
                transfer.run(split.device)
            split.run()

    def where(self, t: Tensor) -> tuple[Device, Tensor]:
        """Return the device that made an output, and the tensor that stands for it there.

        Raises
        ------
        GraphError
            If it is no output of the graph and no placed leaf.
        """
        found = self._placed.get(t)
        if found is not None:
            return found
        buffer = t.buffer
        # What is no output may have been overwritten by what came after.
        if isinstance(buffer, Buffer) and root_of(t).op == "NONE":
            return buffer.device, t
        raise GraphError(f"tensor {t.name!r} is no output of this graph")

    def read(self, t: Tensor) -> NDArray[Any]:
        """Wait for an output and return its elements in NumPy's shape."""
        device, placed = self.where(t)
        return device.read(placed)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its leading ones."""
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    return shape[first:]


def compile_graph(graph: Graph, default: Device, *, workspaces: Mapping[Device, Workspace] | None = None) -> Plan:
    """Make a graph runnable over the devices where its leaves lie.

    A node runs where it writes to, else where the first of its sources that is a placed leaf lies (its weights), else
    where `Graph.on` said, else where its first source is made.

    Parameters
    ----------
    graph : Graph
        Leaves without a place must be inputs.
    default : Device
        For nodes that none of this decides.
    workspaces : mapping of Device to Workspace, optional
        Compute memory to share with other plans; devices without one get memory of their own.

    Returns
    -------
    Plan

    Raises
    ------
    GraphError
        If a leaf has neither place nor input, the graph has no node or was compiled before, or an input is written to
        on one device and read on another.
    OutOfMemory, CompileError
        From the devices.
    """
    return _Scheduler(graph, default).plan(workspaces or {})


class _Scheduler:
    def __init__(self, graph: Graph, default: Device) -> None:
        self.graph = graph
        self.default = default
        if graph.is_compiled:
            raise GraphError("the graph was compiled before and its tensors have their places: build it anew")
        self.nodes = graph.reachable()
        if not self.nodes:
            raise GraphError("the graph has no node that an output or a side effect needs")
        self.inputs = {t: name for name, t in graph.inputs.items()}
        self.device_of: dict[Tensor, Device] = {}
        self.splits: list[Split] = []
        self.copies: dict[tuple[Tensor, Device], Tensor] = {}
        self.clones: dict[Tensor, Tensor] = {}
        self.written: dict[Tensor, Device] = {}  # inputs that nodes change
        self.input_places: dict[str, list[tuple[Device, Tensor]]] = {name: [] for name in graph.inputs}

    # ---- Where each node runs ------------------------------------------------------------------------------------

    def _device(self, t: Tensor) -> Device:
        op = t.op
        if op in VIEW_OPS:
            root = root_of(t)
            if root in self.device_of:
                return self.device_of[root]
            if (placed := _device_of_leaf(root)) is not None:
                return placed
        elif t.view_src is not None:
            # It writes into what is there already.
            root = root_of(t)
            placed = _device_of_leaf(root) or self.device_of.get(root)
            if placed is not None:
                return placed
        for s in t.src:
            if s is not None and (placed := _device_of_leaf(root_of(s))) is not None:
                return placed
        made = [self.device_of[root_of(s)] for s in t.src if s is not None and root_of(s) in self.device_of]
        if t.device is None:
            return made[0] if made else self.default
        # Weights that were put elsewhere take along what stands between two of them.
        hints = {root_of(s).device for s in t.src if s is not None and root_of(s) in self.device_of}
        if len(set(made)) == 1 and hints == {t.device}:
            return made[0]
        chosen: Device = t.device
        return chosen

    # ---- Splits --------------------------------------------------------------------------------------------------

    def _source(self, split: Split, s: Tensor) -> Tensor:
        """Return what stands for a source on the split's device."""
        device = split.device
        root = root_of(s)
        if root in self.inputs:
            return self._input(s, root, device)
        origin = self.device_of.get(root) or _device_of_leaf(root)
        if origin is None:
            raise GraphError(f"tensor {root.name!r} has no place and is no input of the graph")
        if isinstance(root.place, Buffer) and root.place.is_free:
            raise GraphError(f"{origin}: the memory of tensor {root.name!r} was freed")
        here = self.clones.get(s, s)
        if origin is device:
            return here
        key = (here, device)
        if key not in self.copies:
            if s.is_contiguous or s is root:
                copy = Tensor(s.type_id, s.ne[: s.n_dims], nb=s.nb, name=f"{s.name[:48]} (copy)")
                split.transfers.append(Transfer(here, copy, origin))
                self.copies[key] = copy
            else:
                whole = self._source(split, root)
                self.copies[key] = Tensor(
                    s.type_id,
                    s.ne,
                    nb=s.nb,
                    op="VIEW",
                    src=(whole,),
                    view_src=whole,
                    view_offs=s.view_offs,
                    name=s.name,
                )
            made_by = root_of(here)
            if made_by.place is None:
                made_by.flags |= TensorFlag.OUTPUT
        return self.copies[key]

    def _input(self, s: Tensor, root: Tensor, device: Device) -> Tensor:
        """Return an input, or a view of one, on a device: the first device takes the tensor itself."""
        places = self.input_places[self.inputs[root]]
        self._check_written(root, places, device)
        mine = next((t for d, t in places if d is device), None)
        if mine is None:
            mine = (
                root if not places else Tensor(root.type_id, root.ne[: root.n_dims], name=root.name, flags=root.flags)
            )
            places.append((device, mine))
        if mine is root:
            return self.clones.get(s, s)
        if s is root:
            return mine
        key = (s, device)
        if key not in self.copies:
            self.copies[key] = _view(s, mine)
        return self.copies[key]

    def _write_input(self, root: Tensor, device: Device) -> None:
        """Note that a node on a device changes an input."""
        places = self.input_places[self.inputs[root]]
        self.written[root] = device
        self._check_written(root, places, device)
        if not places:
            places.append((device, root))

    def _check_written(self, root: Tensor, places: list[tuple[Device, Tensor]], device: Device) -> None:
        """Refuse an input that one device changes and another one reads: each has what the host sent."""
        writer = self.written.get(root)
        if writer is None:
            return
        for other in (device, *(d for d, _ in places)):
            if other is not writer:
                raise GraphError(
                    f"input {root.name!r} is written to on {writer} and read on {other}: let nodes write into a copy"
                )

    def _cut(self) -> None:
        for t in self.nodes:
            root = root_of(t)
            if root in self.inputs and t.op in VIEW_OPS:
                continue  # a view of an input is made again on each device that reads it
            device = self.device_of[t] = self._device(t)
            if root in self.inputs:
                self._write_input(root, device)
            if t.op in VIEW_OPS:
                # It costs nothing and belongs to no split; encoding lists it where it is read.
                sources = tuple(None if s is None else self.clones.get(s, s) for s in t.src)
                self._replace(t, sources)
                continue
            if not self.splits or self.splits[-1].device is not device:
                self.splits.append(Split(device))
            split = self.splits[-1]
            split.nodes.append(self._replace(t, tuple(None if s is None else self._source(split, s) for s in t.src)))

    def _replace(self, t: Tensor, sources: tuple[Tensor | None, ...]) -> Tensor:
        """Return the node with these sources: itself if it has them already."""
        root = self.clones.get(t.view_src, t.view_src) if t.view_src is not None else None
        if root is t.view_src and all(a is b for a, b in zip(sources, t.src, strict=True)):
            return t
        return self._clone(t, sources, root)

    def _clone(self, t: Tensor, sources: tuple[Tensor | None, ...], root: Tensor | None) -> Tensor:
        clone = Tensor(
            t.type_id,
            t.ne[: t.n_dims],
            nb=t.nb,
            op=t.op,
            src=sources,
            params=t.params,
            view_src=root,
            view_offs=t.view_offs if root is not None else 0,
            flags=t.flags,
            name=t.name,
        )
        self.clones[t] = clone
        return clone

    # ---- Memory --------------------------------------------------------------------------------------------------

    def _steps(self, device: Device) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Return, for each split in order, what is written on the device by copying and by computing."""
        return [
            ([x.copy for x in split.transfers], split.nodes) if split.device is device else ([], [])
            for split in self.splits
        ]

    def _last_uses(self, device: Device, steps: list[Tensor], starts: list[int]) -> dict[Tensor, int]:
        last: dict[Tensor, int] = {}
        for position, t in enumerate(steps):
            for s in t.src:
                if s is not None:
                    last[root_of(s)] = position
        for split, start in zip(self.splits, starts, strict=True):
            for transfer in split.transfers:
                if transfer.origin is device:
                    root = root_of(transfer.source)
                    last[root] = max(last.get(root, 0), start)
        for o in self.graph.outputs:
            last[root_of(self.clones.get(o, o))] = FOREVER
        return last

    def plan(self, workspaces: Mapping[Device, Workspace]) -> Plan:
        self._cut()
        devices = list(dict.fromkeys(split.device for split in self.splits))
        self._mark_shared()
        self.graph.is_compiled = True
        sizes: dict[Device, int] = {}
        for device in devices:
            sizes[device] = self._place(device, workspaces.get(device))
        for split in self.splits:
            split.plan = split.device.prepare(split.nodes)
        placed = {}
        for o in self.graph.outputs:
            root = root_of(o)
            if root in self.device_of:
                placed[o] = (self.device_of[root], self.clones.get(o, o))
        return Plan(self.splits, self.input_places, placed, sizes)

    def _mark_shared(self) -> None:
        """Keep servers from fusing away what a later split of the same device reads, or the host."""
        made_in: dict[Tensor, Split] = {}
        for split in self.splits:
            for t in split.nodes:
                made_in.setdefault(root_of(t), split)
                for s in t.src:
                    if s is not None and made_in.get(root := root_of(s), split) is not split and root.place is None:
                        root.flags |= TensorFlag.OUTPUT
        for o in self.graph.outputs:
            root = root_of(self.clones.get(o, o))
            if root in made_in and root.place is None:
                root.flags |= TensorFlag.OUTPUT

    def _place(self, device: Device, workspace: Workspace | None) -> int:
        steps: list[Tensor] = []
        starts: list[int] = []
        for copied, computed in self._steps(device):
            starts.append(len(steps))
            steps += copied
            steps += computed
        held = [t for places in self.input_places.values() for d, t in places if d is device]
        owned = [t for t in (*held, *steps) if t.view_src is None and t.place is None]
        # What a split copies in arrives before its first node runs; other splits of this device may still be running
        # while it is sent, but in the order of the connection.
        size_of = {t: align_up(device.alloc_size(t), device.alignment) for t in owned}
        last = self._last_uses(device, steps, starts)
        offsets, size = assign(steps, held, last, size_of, device.alignment)
        buffer = workspace.reserve(size) if workspace is not None else device.allocate(size)
        for t, offset in offsets.items():
            t.put(buffer, offset)
        return size


def _device_of_leaf(t: Tensor) -> Device | None:
    return t.place.device if isinstance(t.place, Buffer) else None


def _view(like: Tensor, root: Tensor) -> Tensor:
    return Tensor(
        like.type_id,
        like.ne[: like.n_dims],
        nb=like.nb,
        op="VIEW",
        src=(root,),
        view_src=root,
        view_offs=like.view_offs,
        name=like.name,
    )
