"""Weights from a file to their devices: all servers at once, by their hash alone where a server has them already."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ggml_rpc.client.device import Buffer, Device
from ggml_rpc.errors import Cancelled, DeviceError, ModelError, RpcError
from ggml_rpc.graph._tensor import Tensor

from .arch import OUTPUT
from .gguf_checks import has_nonfinite
from .weights import Weights

if TYPE_CHECKING:
    from .gguf_file import GgufTensor
    from .placement import Placement
    from .weights import ModelFile

MAX_NAME = 63
"""Bytes that the protocol has for a tensor's name, less the zero at its end."""

# Hashing takes longer than sending over a fast link: this many tensors of each server are hashed ahead.
_HASHED_AHEAD = 2
_HASHERS = 2


@dataclass(frozen=True)
class LoadProgress:
    """How far one device is.

    Attributes
    ----------
    device : Device
        The device.
    bytes_done, bytes_total : int
        Of its weights.
    bytes_cached : int
        Of those done, what the server had already.
    """

    device: Device
    bytes_done: int
    bytes_total: int
    bytes_cached: int


Progress = Callable[[LoadProgress], None]
"""Told after each tensor, in any of the loading threads, never in two at once."""


class LoadedWeights:
    """Weights on their devices; a home for what must be freed.

    Attributes
    ----------
    weights : Weights
        As a context wants them.
    placement : Placement
        Where they are.
    """

    def __init__(self, weights: Weights, placement: Placement, buffers: Mapping[Device, Sequence[Buffer]]) -> None:
        self.weights = weights
        self.placement = placement
        self._buffers = {device: list(mine) for device, mine in buffers.items()}

    @property
    def nbytes(self) -> dict[Device, int]:
        """Return the bytes reserved on each device."""
        return {device: sum(buffer.size for buffer in mine) for device, mine in self._buffers.items()}

    @property
    def buffers(self) -> dict[Device, list[Buffer]]:
        """Return the memory that holds the weights."""
        return {device: list(mine) for device, mine in self._buffers.items()}

    def free(self) -> None:
        """Give the memory back; safe to call twice."""
        for mine in self._buffers.values():
            for buffer in mine:
                buffer.free()
        self._buffers.clear()


@dataclass
class _Job:
    """What one server, or this machine, is to be given."""

    items: list[tuple[Device, Tensor, GgufTensor]] = field(default_factory=list)


class Loader:
    """Load models from files.

    Parameters
    ----------
    check : bool
        Refuse weights that are NaN or infinite.
    progress : callable, optional
        Told after each tensor.
    on_stop : callable, optional
        Called as soon as loading fails or is interrupted, so that threads that wait for a server end at once: closes
        connections, say.
    """

    def __init__(
        self, *, check: bool = True, progress: Progress | None = None, on_stop: Callable[[], None] | None = None
    ) -> None:
        self._check = check
        self._progress = progress
        self._on_stop = on_stop
        # By the tensor's name: a model that is loaded again after the loss of a server hashes nothing twice.
        self._digests: dict[str, Future[int | None]] = {}
        self._lock = threading.Lock()

    def load(
        self,
        model: ModelFile,
        placement: Placement,
        devices: Mapping[str, Device],
        *,
        keep: LoadedWeights | None = None,
        go_on: bool = False,
    ) -> LoadedWeights:
        """Put a model's weights where a placement says.

        Parameters
        ----------
        model : ModelFile
            The file; it may be closed afterwards unless the host reads weights from it.
        placement : Placement
            Where they go.
        devices : mapping of str to Device
            By the names in the placement.
        keep : LoadedWeights, optional
            An earlier load of the same file: what lies on the right device already stays there.
        go_on : bool
            The caller loads again after an `RpcError`: `on_stop` is not called then.

        Raises
        ------
        ModelError
            If a weight is NaN or infinite.
        OutOfMemory, DeviceError, ConnectionLost, DeadlineExceeded
            From the devices. In all cases nothing of what was begun stays reserved.
        """
        kept = dict(keep.weights.tensors) if keep is not None else {}
        tensors: dict[str, Tensor] = {}
        sources: dict[Device, list[tuple[Tensor, GgufTensor]]] = {}
        for name, device, source in _plan(model, placement, devices):
            old = kept.get(name)
            if old is not None and isinstance(old.buffer, Buffer) and old.buffer.device is device:
                tensors[name] = old
                continue
            if not device.has_type(source.type):
                raise DeviceError(
                    f"{device} does not know the type {source.type} of tensor {source.name!r}:"
                    " put it elsewhere (--override-tensor), or take a file of another type"
                )
            t = tensors[name] = Tensor(source.type, source.ne, name=_short(name))
            sources.setdefault(device, []).append((t, source))
        buffers: dict[Device, list[Buffer]] = {}
        try:
            for device, pairs in sources.items():
                buffers[device] = device.place([t for t, _ in pairs])
            self._fill(sources, go_on=go_on)
        except BaseException:
            for mine in buffers.values():
                for buffer in mine:
                    buffer.free()
            raise
        if keep is not None:
            for device, mine in keep.buffers.items():
                if device in devices.values():
                    buffers[device] = mine + buffers.get(device, [])
        weights = Weights(model, tensors, [devices[name] for name in placement.layers], devices[placement.output])
        return LoadedWeights(weights, placement, buffers)

    # ---- Threads -------------------------------------------------------------------------------------------------

    def _fill(self, sources: Mapping[Device, Sequence[tuple[Tensor, GgufTensor]]], *, go_on: bool) -> None:
        """Send all contents: a thread for each server and one for this machine."""
        jobs = _jobs(sources)
        if not jobs:
            return
        counts = _Counts(sources, self._progress)
        stop = threading.Event()
        hashers = ThreadPoolExecutor(_HASHERS, thread_name_prefix="hash")
        workers = ThreadPoolExecutor(len(jobs), thread_name_prefix="load")
        running = [workers.submit(self._run, job, counts, stop, hashers) for job in jobs]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException as e:
            stop.set()
            if self._on_stop is not None and not (go_on and isinstance(e, RpcError)):
                self._on_stop()
            raise
        finally:
            # After a failure the threads end at their next tensor; memory must not be freed below them.
            hashers.shutdown(wait=True, cancel_futures=True)
            workers.shutdown(wait=True)
            self._digests = {
                name: f for name, f in self._digests.items() if not f.cancelled() and f.exception() is None
            }

    def _run(self, job: _Job, counts: _Counts, stop: threading.Event, hashers: ThreadPoolExecutor) -> None:
        digests: list[Future[int | None]] = []
        for i, (device, t, source) in enumerate(job.items):
            for ahead_device, _, ahead in job.items[len(digests) : i + 1 + _HASHED_AHEAD]:
                digests.append(self._digest(ahead_device, ahead, hashers))
            if stop.is_set():
                raise Cancelled("loading was stopped")
            if self._check and has_nonfinite(source):
                raise ModelError(
                    f"{source.path}: tensor {source.name!r} holds numbers that are NaN or infinite:"
                    " fetch or convert the file again"
                )
            cached = device.write_cached(t, source.data, digest=digests[i].result())
            counts.add(device, source.nbytes, cached=cached)
        for device in dict.fromkeys(device for device, _, _ in job.items):
            device.synchronize()

    def _digest(self, device: Device, source: GgufTensor, hashers: ThreadPoolExecutor) -> Future[int | None]:
        if device.endpoint is None:
            return _no_digest()
        with self._lock:
            found = self._digests.get(source.name)
            if found is None:
                found = hashers.submit(device.digest, source.data)
                self._digests[source.name] = found
            return found


class _Counts:
    """Bytes so far, and who wants to know."""

    def __init__(
        self, sources: Mapping[Device, Sequence[tuple[Tensor, GgufTensor]]], progress: Progress | None
    ) -> None:
        self._lock = threading.Lock()
        self._progress = progress
        self._total = {device: sum(source.nbytes for _, source in pairs) for device, pairs in sources.items()}
        self._done = dict.fromkeys(self._total, 0)
        self._cached = dict.fromkeys(self._total, 0)

    def add(self, device: Device, n: int, *, cached: bool) -> None:
        with self._lock:
            self._done[device] += n
            self._cached[device] += n * cached
            if self._progress is not None:
                self._progress(LoadProgress(device, self._done[device], self._total[device], self._cached[device]))


def _plan(
    model: ModelFile, placement: Placement, devices: Mapping[str, Device]
) -> Iterator[tuple[str, Device, GgufTensor]]:
    """Yield each weight that goes to a device, in the order of the model."""
    for spec in model.specs:
        if spec.layer >= 0 or spec.layer == OUTPUT:
            part = spec.layer if spec.layer >= 0 else len(placement.layers)
            yield spec.name, devices[placement.device_of(spec.name, part)], model.tensor(spec)
        elif spec.name in placement.weights:
            yield spec.name, devices[placement.weights[spec.name]], model.tensor(spec)


def _jobs(sources: Mapping[Device, Sequence[tuple[Tensor, GgufTensor]]]) -> list[_Job]:
    """Return a job for the devices of each server, and one for those of this machine; tensors in the file's order."""
    groups: list[tuple[Device, _Job]] = []
    for device, pairs in sources.items():
        job = next((job for other, job in groups if other.shares_with(device)), None)
        if job is None:
            job = _Job()
            groups.append((device, job))
        job.items += [(device, t, source) for t, source in pairs]
    for _, job in groups:
        job.items.sort(key=lambda item: (str(item[2].path), item[2].file_offset))
    return [job for _, job in groups]


def _no_digest() -> Future[int | None]:
    future: Future[int | None] = Future()
    future.set_result(None)
    return future


def _short(name: str) -> str:
    return name.encode()[:MAX_NAME].decode(errors="ignore")
