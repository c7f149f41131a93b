"""What a model would take on devices, found by building its graphs for devices that hold nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ggml_rpc.client.device import Buffer, BytesLike, Device, DevicePlan, align_up
from ggml_rpc.graph._tensor import Tensor

from .arch import INPUT, OUTPUT
from .context import Context
from .kv_cache import cache_leaves
from .mask_form import fuses
from .placement import Demand, Part
from .weights import ModelFile, Weights

if TYPE_CHECKING:
    from ggml_rpc.client.local import LocalDevice

Flash = bool | Literal["auto", "on", "off"]


@dataclass(frozen=True)
class ContextSettings:
    """How a context is to be made; see `Context` for what the values mean.

    Parameters
    ----------
    flash_attn : bool or str
        `True` or `"on"`, `False` or `"off"`, or `"auto"`: where all devices have it.
    """

    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    flash_attn: Flash = "auto"
    type_k: str = "F16"
    type_v: str = "F16"
    whole_window: bool = False

    def __post_init__(self) -> None:
        if self.flash_attn not in (True, False, "auto", "on", "off"):
            raise ValueError(f"flash_attn must be on, off or auto, not {self.flash_attn!r}")

    def flash(self, devices: Sequence[Device], *, windowed: bool) -> bool:
        """Tell whether these devices are to use fused attention, in a model with a sliding window or without."""
        if self.flash_attn == "auto":
            real = [d for device in devices for d in (device.like if isinstance(device, _Outline) else (device,))]
            return all(fuses(device, windowed=windowed) for device in real)
        return self.flash_attn in (True, "on")

    def open(self, weights: Weights, host: Device) -> Context:
        """Return a context; raises what `Context` raises."""
        return Context(
            weights,
            n_ctx=self.n_ctx,
            n_batch=self.n_batch,
            n_ubatch=self.n_ubatch,
            flash_attn=self.flash(weights.devices, windowed=weights.hparams.window > 0),
            type_k=self.type_k,
            type_v=self.type_v,
            whole_window=self.whole_window,
            host=host,
        )


def demand_of(model: ModelFile, settings: ContextSettings, devices: Sequence[Device], host: LocalDevice) -> Demand:
    """Return what a model needs in a context.

    Parameters
    ----------
    model : ModelFile
        The model.
    settings : ContextSettings
        The context.
    devices : sequence of Device
        Devices that may take part: alignments and known ops are theirs.
    host : LocalDevice
        This machine's CPU.

    Raises
    ------
    ContextError
        If the model cannot be run in such a context.
    """
    inner, outer = _Outline("layers", devices), _Outline("output", devices)
    parts: list[dict[str, int]] = [{} for _ in range(model.hparams.n_layer + 1)]
    held: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for spec in model.specs:
        source = model.tensor(spec)
        size = align_up(source.nbytes, inner.alignment)
        if spec.layer == INPUT:
            held[spec.name] = size
            continue
        t = tensors[spec.name] = Tensor(source.type, source.ne)
        (outer if spec.layer == OUTPUT else inner).place([t])
        parts[spec.layer if spec.layer >= 0 else -1][spec.name] = size
    weights = Weights(model, tensors, [inner] * model.hparams.n_layer, outer)
    with settings.open(weights, host) as context:
        compute = context.compute_bytes()
        leaves = [cache_leaves(model.hparams, context.cache.settings, il) for il in range(model.hparams.n_layer)]
    cache = [sum(align_up(t.nbytes, inner.alignment) for t in pair) for pair in leaves]
    return Demand(
        [Part(mine, n) for mine, n in zip(parts, cache, strict=False)],
        Part(parts[-1]),
        held,
        compute[inner],
        compute[outer],
    )


class _Outline(Device):
    """A device without memory that takes everything: graphs for it have sizes and cannot be run."""

    def __init__(self, name: str, like: Sequence[Device]) -> None:
        self.name = name
        self.description = "for sizes only"
        self.endpoint = None
        self.alignment = max(device.alignment for device in like)
        self.max_size = 1 << 62
        self.like = tuple(like)
        self._handles = itertools.count(1)

    def memory(self) -> tuple[int, int]:
        return self.max_size, self.max_size

    def allocate(self, size: int) -> Buffer:
        return Buffer(next(self._handles), 0, size, self, _nothing)

    def alloc_size(self, t: Tensor) -> int:
        return t.nbytes

    def write(self, t: Tensor, data: BytesLike, offset: int = 0) -> None:
        pass

    def start_read(self, t: Tensor, out: BytesLike) -> _Never:
        return _Never()

    def copy(self, src: Tensor, dst: Tensor) -> bool:
        return True

    def clear(self, buffer: Buffer, value: int = 0) -> None:
        pass

    def prepare(self, nodes: Sequence[Tensor]) -> DevicePlan:
        return _NoPlan()

    def speaks(self, op: str, kind: str | None = None, value: int = 0) -> bool:
        return all(device.speaks(op, kind, value) for device in self.like)

    def has_type(self, name: str) -> bool:
        return all(device.has_type(name) for device in self.like)

    def shares_with(self, other: Device) -> bool:
        return other is self


class _NoPlan(DevicePlan):
    def run(self) -> None:
        pass


class _Never:
    def result(self, timeout: float | None = None) -> None:
        pass


def _nothing() -> None:
    pass
