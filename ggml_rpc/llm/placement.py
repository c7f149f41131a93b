"""Which device takes which weights: pure functions of sizes, free memory and the user's wishes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ggml_rpc.errors import PlacementError

_HALVINGS = 60  # of a share between 0 and 1: more than a double tells apart


@dataclass(frozen=True)
class Room:
    """A device as placement sees it.

    Parameters
    ----------
    name : str
        Its name.
    free : int
        Bytes that may be used.
    """

    name: str
    free: int


@dataclass(frozen=True)
class Part:
    """What stays together: a layer, or what follows the last.

    Parameters
    ----------
    weights : mapping of str to int
        Bytes of each weight by its name.
    cache : int
        Bytes of its keys and values.
    """

    weights: Mapping[str, int]
    cache: int = 0


@dataclass(frozen=True)
class Demand:
    """What a model needs.

    Parameters
    ----------
    layers : sequence of Part
        In order.
    output : Part
        What follows the last layer.
    host : mapping of str to int
        Bytes of the weights that the host reads from the file itself; they take no device's memory unless they are
        placed by name.
    compute : int
        Bytes of compute memory of a device that has a layer.
    compute_output : int
        The same for what follows the last layer.
    """

    layers: Sequence[Part]
    output: Part
    host: Mapping[str, int] = field(default_factory=dict)
    compute: int = 0
    compute_output: int = 0

    @property
    def parts(self) -> list[Part]:
        """Return the layers and the output."""
        return [*self.layers, self.output]


@dataclass(frozen=True)
class Wishes:
    """What the user asks for; nothing is checked before `place` sees it.

    Parameters
    ----------
    n_gpu_layers : int, optional
        How many of the last layers, the output counted as one, the devices take; the host takes the others. By default,
        and if negative, all.
    tensor_split : sequence of float, optional
        Shares of the devices in their order; those without one get none. By default shares follow the memory that is
        free.
    overrides : sequence of (str, str)
        Regular expressions and devices: weights whose name one is found in go to its device. The first that matches
        counts.
    """

    n_gpu_layers: int | None = None
    tensor_split: Sequence[float] | None = None
    overrides: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Use:
    """Bytes that a device would hold.

    Parameters
    ----------
    room : Room
        The device.
    weights, cache, compute : int
        What for.
    """

    room: Room
    weights: int
    cache: int
    compute: int

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.cache + self.compute

    @property
    def short(self) -> int:
        """Return the bytes that are missing, 0 if it fits."""
        return max(0, self.total - self.room.free)


@dataclass(frozen=True)
class Placement:
    """Where everything goes, by names of devices.

    Attributes
    ----------
    layers : tuple of str
        Device of each layer: of its cache, and of its weights unless `weights` says otherwise.
    output : str
        Device of what follows the last layer.
    weights : mapping of str to str
        Weights that were placed by name, host weights among them.
    """

    layers: tuple[str, ...]
    output: str
    weights: Mapping[str, str] = field(default_factory=dict)

    def device_of(self, weight: str, part: int) -> str:
        """Return the device of a weight of layer `part`, or of the output if that is past the last layer."""
        return self.weights.get(weight) or (self.layers[part] if part < len(self.layers) else self.output)

    @property
    def devices(self) -> list[str]:
        """Return all devices that hold anything, in the order in which layers use them."""
        return list(dict.fromkeys((*self.layers, self.output, *self.weights.values())))


def place(demand: Demand, devices: Sequence[Room], host: Room, wishes: Wishes | None = None) -> Placement:
    """Decide where everything goes.

    With given shares the rule is llama.cpp's: of n layers and the output that the devices take, the i-th goes to the
    first device whose cumulative share is above i/n. Without, the same is done by bytes, and with what is free on each
    device after its compute memory as its share; where that does not fit, devices are filled in order up to the least
    common degree at which all find room.

    Parameters
    ----------
    demand : Demand
        The model.
    devices : sequence of Room
        Who is to take layers, in order. The host may be among them.
    host : Room
        Who takes what the devices do not.
    wishes : Wishes, optional
        The user's.

    Raises
    ------
    PlacementError
        If a wish cannot be met, or something does not fit: then with a table.
    """
    wishes = wishes or Wishes()
    rooms = {room.name: room for room in (*devices, host)}
    named = _named(demand, rooms, wishes.overrides)
    # The host reads these from the file where they are.
    named = {weight: device for weight, device in named.items() if weight not in demand.host or device != host.name}
    n = len(demand.parts)
    taken = n if wishes.n_gpu_layers is None or wishes.n_gpu_layers < 0 else min(n, wishes.n_gpu_layers)
    owners = [host.name] * (n - taken)
    if wishes.tensor_split is not None:
        shares = _shares(wishes.tensor_split, devices)
        owners += [devices[i].name for i in _by_shares(taken, shares)]
    else:
        owners += _by_memory(demand, devices, owners, named)
    placement = Placement(tuple(owners[:-1]), owners[-1], named)
    check(demand, placement, rooms.values())
    return placement


def refill(demand: Demand, old: Placement, rooms: Sequence[Room], lost: Iterable[str]) -> Placement:
    """Give what lay on lost devices to those that are left; what lies on these stays.

    A gap of layers goes to the devices before and behind it, in proportion to what is free there; to others only if
    these have no room. Weights that were placed by name on a lost device go where their layer is.

    Parameters
    ----------
    demand : Demand
        The model.
    old : Placement
        Where everything is.
    rooms : sequence of Room
        Devices that are left, the host last. What the model holds there counts as free.
    lost : iterable of str
        Devices that are gone.

    Raises
    ------
    PlacementError
        If it does not fit.
    """
    gone = set(lost)
    named = {weight: device for weight, device in old.weights.items() if device not in gone}
    owners: list[str | None] = [None if d in gone else d for d in (*old.layers, old.output)]
    while None in owners:
        start = owners.index(None)
        stop = next((i for i in range(start, len(owners)) if owners[i] is not None), len(owners))
        beside = {d for d in (owners[start - 1] if start else None, owners[stop] if stop < len(owners) else None) if d}
        used = {d for d in owners if d} or {room.name for room in rooms[:-1] or rooms}
        for circle in (beside, used, {room.name for room in rooms}):
            chosen = _fill_gap(demand, owners, (start, stop), [r for r in rooms if r.name in circle], named)
            if chosen is not None:
                break
        # Nobody has room: the check below tells what is missing on those that would be asked first.
        owners[start:stop] = chosen or [next(r.name for r in rooms if r.name in (beside or used))] * (stop - start)
    final = [d for d in owners if d is not None]
    placement = Placement(tuple(final[:-1]), final[-1], named)
    check(demand, placement, rooms)
    return placement


def uses(demand: Demand, placement: Placement, rooms: Iterable[Room]) -> list[Use]:
    """Return what each device would hold."""
    weights: dict[str, int] = {}
    cache: dict[str, int] = {}
    for i, part in enumerate(demand.parts):
        for name, size in part.weights.items():
            device = placement.device_of(name, i)
            weights[device] = weights.get(device, 0) + size
        owner = placement.layers[i] if i < len(placement.layers) else placement.output
        cache[owner] = cache.get(owner, 0) + part.cache
    for name, size in demand.host.items():
        if name in placement.weights:
            device = placement.weights[name]
            weights[device] = weights.get(device, 0) + size
    out = []
    for room in {room.name: room for room in rooms}.values():
        computes = room.name in placement.layers or room.name in placement.weights.values()
        compute = demand.compute * computes + demand.compute_output * (room.name == placement.output)
        out.append(Use(room, weights.get(room.name, 0), cache.get(room.name, 0), compute))
    return out


def check(demand: Demand, placement: Placement, rooms: Iterable[Room]) -> None:
    """Raise `PlacementError`, with a table, if something does not fit."""
    found = uses(demand, placement, rooms)
    short = [use for use in found if use.short]
    if short:
        missing = ", ".join(f"{use.room.name} lacks {format_bytes(use.short)}" for use in short)
        advice = "add devices, change --tensor-split or -ngl, or take a smaller context (-c) or batch (-ub)"
        raise PlacementError(f"the model does not fit: {missing}; {advice}", table(found))


def table(found: Sequence[Use]) -> str:
    """Return a table of what each device would hold."""
    head = ("device", "free", "weights", "KV cache", "compute", "sum", "")
    rows = [
        (
            use.room.name,
            *map(format_bytes, (use.room.free, use.weights, use.cache, use.compute, use.total)),
            f"{format_bytes(use.short)} too much" if use.short else "fits",
        )
        for use in found
        if use.total
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(row[1:6], widths[1:6], strict=True)),
        ]
        lines.append("  ".join((*cells, row[6])).rstrip())
    return "\n".join(lines)


def format_bytes(n: int) -> str:
    """Return a size for people: `1.50 GiB`."""
    value = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def parse_split(text: str) -> list[float]:
    """Return the shares in a text such as `3,1`; `/` separates too.

    Raises
    ------
    PlacementError
        If an entry is no number.
    """
    try:
        return [float(entry) for entry in re.split("[,/]", text)]
    except ValueError:
        raise PlacementError(f"the tensor split {text!r} is no list of numbers such as 3,1") from None


def parse_overrides(given: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return expressions and devices of entries `REGEX=DEVICE`; a text separates them by commas.

    Raises
    ------
    PlacementError
        If an entry has no `=`, or nothing before or behind it.
    """
    out = []
    for entry in given.split(",") if isinstance(given, str) else given:
        expression, _, device = entry.rpartition("=")
        if not expression or not device.strip():
            raise PlacementError(f"the tensor override {entry!r} is not of the form REGEX=DEVICE")
        out.append((expression, device.strip()))
    return out


# ---- Wishes ----------------------------------------------------------------------------------------------------------


def _shares(split: Sequence[float], devices: Sequence[Room]) -> list[float]:
    text = ",".join(f"{share:g}" for share in split)
    names = ", ".join(room.name for room in devices)
    if len(split) > len(devices):
        raise PlacementError(
            f"the tensor split {text} has {len(split)} entries, but the devices that take layers are"
            f" {len(devices)}: {names}"
        )
    for share in split:
        if not math.isfinite(share) or share < 0:
            raise PlacementError(f"the tensor split {text} has an entry that is no share: {share:g}")
    if not any(split):
        raise PlacementError(f"the tensor split {text} gives nothing to any of {names}")
    return [*split, *[0.0] * (len(devices) - len(split))]


def _named(demand: Demand, rooms: Mapping[str, Room], overrides: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the device of each weight that an override matches."""
    if not overrides:
        return {}
    compiled = []
    for expression, device in overrides:
        if device not in rooms:
            raise PlacementError(
                f"the tensor override {expression}={device} names no device of this run: {', '.join(rooms)}"
            )
        try:
            compiled.append((re.compile(expression), device))
        except re.error as e:
            raise PlacementError(f"the tensor override {expression}={device} is no regular expression: {e}") from None
    names = [name for part in ({**demand.host}, *(p.weights for p in demand.parts)) for name in part]
    named: dict[str, str] = {}
    unmatched = dict.fromkeys(overrides)
    for name in names:
        for (pattern, device), override in zip(compiled, overrides, strict=True):
            if pattern.search(name):
                unmatched.pop(override, None)
                named.setdefault(name, device)
    if unmatched:
        expression, device = next(iter(unmatched))
        example = names[-1] if names else "output.weight"
        raise PlacementError(
            f"the tensor override {expression}={device} matches no weight; they are named like {example!r}"
        )
    return named


# ---- Shares ----------------------------------------------------------------------------------------------------------


def _by_shares(n: int, shares: Sequence[float]) -> list[int]:
    """Return which of the devices takes each of n parts: llama.cpp's rule, in its single precision."""
    cumulative = np.cumsum(np.array(shares, np.float32), dtype=np.float32)
    cumulative /= cumulative[-1]
    at = np.arange(n, dtype=np.float32) / np.float32(max(n, 1))
    return [int(i) for i in np.searchsorted(cumulative, at, side="right")]


def _sizes(demand: Demand, named: Mapping[str, str]) -> list[int]:
    """Return the bytes of each part that go where it goes."""
    return [part.cache + sum(size for name, size in part.weights.items() if name not in named) for part in demand.parts]


def _capacities(
    demand: Demand, rooms: Sequence[Room], owners: Sequence[str | None], named: Mapping[str, str]
) -> list[int]:
    """Return the bytes that parts may still take on each device: what is free less compute memory and what is fixed."""
    sizes = _sizes(demand, named)
    held = {room.name: demand.compute for room in rooms}
    for owner, size in zip(owners, sizes, strict=False):
        if owner in held:
            held[owner] += size
    weights = {name: size for part in demand.parts for name, size in part.weights.items()} | dict(demand.host)
    for name, device in named.items():
        if device in held:
            held[device] += weights[name]
    return [max(0, room.free - held[room.name]) for room in rooms]


def _by_memory(demand: Demand, devices: Sequence[Room], owners: Sequence[str], named: Mapping[str, str]) -> list[str]:
    """Return the devices of the parts after those that have an owner."""
    sizes = _sizes(demand, named)[len(owners) :]
    if not sizes:
        return []
    sizes[-1] += demand.compute_output
    capacities = _capacities(demand, devices, owners, named)
    # Numbers of layers in proportion, as llama.cpp has them, so that a prompt flows evenly; bytes if that does not fit.
    even = _by_shares(len(sizes), [float(c) for c in capacities]) if any(capacities) else None
    chosen = even if even is not None and _fits(sizes, capacities, even) else _spread(sizes, capacities)
    if chosen is None:
        # Nothing helps: let the check show what the shares would have been.
        total = [float(c) for c in capacities]
        chosen = _by_bytes(sizes, total if any(total) else [1.0] * len(total))
    return [devices[i].name for i in chosen]


def _fill_gap(
    demand: Demand,
    owners: Sequence[str | None],
    gap: tuple[int, int],
    rooms: Sequence[Room],
    named: Mapping[str, str],
) -> list[str] | None:
    """Return who takes the parts of a gap, None if these devices have no room for them."""
    start, stop = gap
    if not rooms:
        return None
    sizes = _sizes(demand, named)[start:stop]
    if stop == len(owners):
        sizes[-1] += demand.compute_output
    # The device before the gap first, the one behind it last: as few changes of device as can be.
    before, behind = owners[start - 1] if start else None, owners[stop] if stop < len(owners) else None
    ordered = sorted(rooms, key=lambda room: (room.name != before, room.name == behind and room.name != before))
    chosen = _spread(sizes, _capacities(demand, ordered, owners, named))
    return None if chosen is None else [ordered[i].name for i in chosen]


def _spread(sizes: Sequence[int], capacities: Sequence[int]) -> list[int] | None:
    """Return devices for consecutive parts such that all fit, in proportion to capacities if that fits; else None."""
    if sum(sizes) > sum(capacities):
        return None
    chosen = _by_bytes(sizes, [float(c) for c in capacities])
    if _fits(sizes, capacities, chosen):
        return chosen
    best = _filled(sizes, capacities, 1.0)
    if best is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _filled(sizes, capacities, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _by_bytes(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Return the device in whose stretch of all bytes the middle of each part lies."""
    total = sum(sizes)
    ends = np.cumsum(shares) / np.sum(shares) * total
    middles = np.cumsum(sizes) - np.asarray(sizes) / 2
    return [min(int(i), len(shares) - 1) for i in np.searchsorted(ends, middles, side="right")]


def _filled(sizes: Sequence[int], capacities: Sequence[int], degree: float) -> list[int] | None:
    """Fill devices in order, each up to a degree of its capacity; None if not all parts find room."""
    out: list[int] = []
    device, left = 0, capacities[0] * degree
    for size in sizes:
        while size > left:
            device += 1
            if device == len(capacities):
                return None
            left = capacities[device] * degree
        left -= size
        out.append(device)
    return out


def _fits(sizes: Sequence[int], capacities: Sequence[int], chosen: Sequence[int]) -> bool:
    left = list(capacities)
    for size, i in zip(sizes, chosen, strict=True):
        left[i] -= size
    return min(left) >= 0
