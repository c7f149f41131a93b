"""A model on its devices: file, placement, weights and what belongs to them, opened and closed together."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING

from ggml_rpc.client.device import Device
from ggml_rpc.client.remote import RemoteDevice
from ggml_rpc.errors import GraphError, ModelError, PlacementError, RpcError

from .context import Context
from .devices import DeviceSet, open_devices
from .gguf_file import GgufFile
from .loader import LoadedWeights, Loader, Progress
from .placement import Demand, Placement, Room, Use, Wishes, parse_overrides, parse_split, place, refill, uses
from .sizing import ContextSettings, demand_of
from .tokenizer import Tokenizer
from .weights import ModelFile

if TYPE_CHECKING:
    from .hparams import HParams
    from .weights import Weights

log = logging.getLogger(__name__)

_ENDLESS = 1 << 60


class Model:
    """A model whose weights are on devices. Made by `Model.open`; a context manager.

    Attributes
    ----------
    file : ModelFile
        Settings and tensors of the file.
    tokenizer : Tokenizer
        Of the file.
    devices : DeviceSet
        All devices of the run.
    settings : ContextSettings
        The context that room was kept for.
    """

    def __init__(
        self,
        file: ModelFile,
        devices: DeviceSet,
        settings: ContextSettings,
        demand: Demand,
        loader: Loader,
        *,
        chosen: Sequence[Device],
        owns_devices: bool,
    ) -> None:
        self.file = file
        self.tokenizer = Tokenizer.from_metadata(file.file.metadata)
        self.devices = devices
        self.settings = settings
        self._chosen = [*chosen, devices.host]
        self._demand = demand
        self._loader = loader
        self._owns_devices = owns_devices
        self._loaded: LoadedWeights | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        devices: DeviceSet | None = None,
        *,
        device: str | Sequence[str] | None = None,
        main_device: str | None = None,
        n_gpu_layers: int | None = None,
        tensor_split: str | Sequence[float] | None = None,
        override_tensor: str | Sequence[str] = (),
        placement: Placement | None = None,
        settings: ContextSettings | None = None,
        check: bool = True,
        progress: Progress | None = None,
        survive: bool = False,
        close_devices: bool = False,
    ) -> Model:
        """Read a model, decide what goes where and load it.

        Parameters
        ----------
        path : str or PathLike
            GGUF file; the first of a split model's.
        devices : DeviceSet, optional
            From `open_devices`. By default this machine alone.
        device : str or sequence of str, optional
            Which of the devices take layers, in this order: `RPC0,CPU`; "none" for this machine's CPU alone. By default
            all but this machine's CPU, which takes them if there is no other.
        main_device : str, optional
            One device that is to take all that `device` would share out: its name, or its place among them.
        n_gpu_layers : int, optional
            How many of the last layers, the output counted as one, these devices take; this machine's CPU takes the
            others. By default all.
        tensor_split : str or sequence of float, optional
            Shares of these devices: `3,1`. By default they follow the memory that is free after keys, values and
            intermediate results.
        override_tensor : str or sequence of str
            Entries `REGEX=DEVICE`: weights whose name the expression is found in go there; the first that matches
            counts.
        placement : Placement, optional
            Where everything goes, in place of all these.
        settings : ContextSettings, optional
            The context to keep room for.
        check : bool
            Refuse weights that are NaN or infinite.
        progress : callable, optional
            Told of each tensor that was loaded, see `LoadProgress`.
        survive : bool
            Go on without servers that are lost while weights are loaded: what they were to take goes to the other
            devices, as `redistribute` does it.
        close_devices : bool
            Close `devices` with the model, and as soon as loading fails or is interrupted: threads that wait for a
            server end at once then. Otherwise they stay open, and end what they are at.

        Raises
        ------
        ModelError
            If the file cannot be used.
        PlacementError
            If the model does not fit, with a table; if a wish cannot be met.
        ContextError
            If the model cannot be run in such a context.
        DeviceError, OutOfMemory, ConnectionLost, DeadlineExceeded, ServerRefused
            From the devices. Nothing stays allocated then.
        """
        settings = settings or ContextSettings()
        with ExitStack() as undo:
            owned = close_devices or devices is None
            devices = devices or open_devices()
            if owned:
                undo.callback(devices.close)
            file = GgufFile.open(path)
            undo.callback(file.close)
            read = ModelFile.read(file)
            chosen = devices.select(device)
            if main_device is not None:
                chosen = [_main(devices, main_device, chosen)]
            try:
                demand = demand_of(read, settings, [*chosen, devices.host], devices.host)
            except GraphError as e:
                # Settings and tensors fit each other, but not into an operation: a type that it does not take.
                raise ModelError(f"{file.path}: the model's graph cannot be made: {e}") from e
            loader = Loader(check=check, progress=progress, on_stop=devices.close if owned else None)
            model = cls(read, devices, settings, demand, loader, chosen=chosen, owns_devices=owned)
            if placement is None:
                wishes = Wishes(
                    n_gpu_layers,
                    parse_split(tensor_split) if isinstance(tensor_split, str) else tensor_split,
                    [(e, devices.find(name).name) for e, name in parse_overrides(override_tensor)],
                )
                placement = place(demand, [_room(d, survive) for d in chosen], _room(devices.host), wishes)
            model._load(placement, survive)
            undo.pop_all()
        return model

    @property
    def hparams(self) -> HParams:
        """Return the model's sizes and settings."""
        return self.file.hparams

    @property
    def loaded(self) -> LoadedWeights:
        """Return the weights with their memory.

        Raises
        ------
        ValueError
            If the model was closed.
        """
        if self._loaded is None:
            raise ValueError("the model was closed")
        return self._loaded

    @property
    def weights(self) -> Weights:
        """Return the weights on their devices."""
        return self.loaded.weights

    @property
    def placement(self) -> Placement:
        """Return where everything is."""
        return self.loaded.placement

    def usage(self) -> list[Use]:
        """Return what each device holds for the model and a context."""
        rooms = [Room(d.name, d.memory()[0] + self.loaded.nbytes.get(d, 0)) for d in self._live()]
        return [use for use in uses(self._demand, self.placement, rooms) if use.total]

    def context(self) -> Context:
        """Return a context in the model's settings; raises what `Context` raises."""
        return self.settings.open(self.weights, self.devices.host)

    def _lost(self) -> set[str]:
        return {device.name for device in self.devices.lost()}

    def _live(self) -> list[Device]:
        lost = self._lost()
        return [device for device in self.devices.all if device.name not in lost]

    def redistribute(self) -> None:
        """Bring what lay on servers that are gone to the devices that are left; what lies on these stays.

        Devices that were to take no layers get none now, but for this machine's CPU if all else is full.

        Contexts of the model must have been closed: what they held counts as free. They are worth nothing afterwards.

        Raises
        ------
        PlacementError
            If it does not fit on all devices that are left, this machine's CPU among them; with a table.
        DeviceError, OutOfMemory, ConnectionLost, DeadlineExceeded, ServerRefused
            From the devices that are left; may be called again.
        """
        self._load_elsewhere(self.loaded.placement)

    def _load(self, placement: Placement, survive: bool) -> None:
        """Load for the first time."""
        known: set[str] = set()
        while True:
            try:
                if survive and self._lost():
                    self._load_elsewhere(placement)
                else:
                    devices = {device.name: device for device in self.devices.all}
                    self._loaded = self._loader.load(self.file, placement, devices, go_on=survive)
                return
            except PlacementError:
                raise
            except RpcError as e:
                new = self._lost() - known
                if not (survive and new):
                    raise
                log.warning("%s; bringing what %s was to take elsewhere", e, ", ".join(sorted(new)))
                known |= new

    def _load_elsewhere(self, placement: Placement) -> None:
        """Load what a placement puts on lost devices on those that are left, and what else is not loaded yet."""
        live = self._live()
        held = {} if self._loaded is None else self._loaded.nbytes
        # Whoever holds something takes part, as a placement may have been given.
        taking = [device for device in live if device in self._chosen or device in held]
        taking.sort(key=lambda device: device is self.devices.host)
        rooms = [Room(device.name, device.memory()[0] + held.get(device, 0)) for device in taking]
        placement = refill(self._demand, placement, rooms, self._lost())
        self._loaded = self._loader.load(self.file, placement, {d.name: d for d in live}, keep=self._loaded, go_on=True)

    def close(self) -> None:
        """Free the weights; end the connections if the model opened them. Safe to call twice."""
        if self._loaded is not None:
            self._loaded.free()
            self._loaded = None
        self.file.file.close()
        for device in self._live():
            # What a server holds for a connection that broke meanwhile it frees by itself.
            with suppress(RpcError):
                device.flush()
        if self._owns_devices:
            self.devices.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _room(device: Device, survive: bool = False) -> Room:
    try:
        return Room(device.name, device.memory()[0])
    except RpcError:
        if not (survive and isinstance(device, RemoteDevice) and device.server.closed):
            raise
        # Whatever it gets goes to others before it is loaded.
        return Room(device.name, _ENDLESS)


def _main(devices: DeviceSet, name: str, chosen: Sequence[Device]) -> Device:
    if name.strip().isdecimal():
        if int(name) >= len(chosen):
            raise PlacementError(f"there is no main device {int(name)}: this run has {_numbered(chosen)}")
        return chosen[int(name)]
    main = devices.find(name)
    if main not in chosen:
        raise PlacementError(
            f"the main device {main.name} takes no layers in this run; these do: {', '.join(d.name for d in chosen)}"
        )
    return main


def _numbered(devices: Sequence[Device]) -> str:
    return ", ".join(f"{i}: {device.name}" for i, device in enumerate(devices))
