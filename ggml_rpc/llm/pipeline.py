"""Run ubatches over several servers at once: while one computes its layers, the one before computes the next ubatch.

A plan is cut into stages: consecutive splits whose devices share a server. Each server has a thread that starts its
stages in order and hands what they made on as transfers under way; the next server's thread waits for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ggml_rpc.client.device import Device, Waiting
    from ggml_rpc.client.schedule import Plan, Split, Transfer
    from ggml_rpc.graph._tensor import Tensor

Bytes = NDArray[np.uint8]
Outputs = list[tuple["Tensor", bytearray, "Waiting"]]
"""What was read, where its bytes go, and the wait for them."""

# How long a reply may lie at a server while another one is busy; servers give up after 30 s and more.
_PATIENCE_SECONDS = 1.0


@dataclass(eq=False)
class Stage:
    """What one server does of a plan.

    Attributes
    ----------
    splits : list of Split
        In order.
    sends : list of Transfer
        What later stages need of it.
    inputs : list of (str, Device, Tensor)
        Host inputs that it reads.
    outputs : list of (Tensor, Device, Tensor)
        Outputs that it makes: as the graph has them, and where they lie.
    """

    splits: list[Split]
    sends: list[Transfer] = field(default_factory=list)
    inputs: list[tuple[str, Device, Tensor]] = field(default_factory=list)
    outputs: list[tuple[Tensor, Device, Tensor]] = field(default_factory=list)

    @property
    def device(self) -> Device:
        """Return one of its devices."""
        return self.splits[0].device


class Staged:
    """A plan, its outputs, and its stages.

    Parameters
    ----------
    plan : Plan
        The compiled graph.
    outputs : sequence of Tensor
        What is read after each run.
    """

    def __init__(self, plan: Plan, outputs: Sequence[Tensor]) -> None:
        self.plan = plan
        self.stages: list[Stage] = []
        for split in plan.splits:
            if not self.stages or not _together(self.stages[-1].device, split.device):
                self.stages.append(Stage([]))
            self.stages[-1].splits.append(split)
        groups = [stage.device for stage in self.stages]
        self.flows = not any(_together(a, b) for i, a in enumerate(groups) for b in groups[:i])
        """Whether each server is visited once, so that it may go on with the next ubatch meanwhile."""
        for stage in self.stages if self.flows else ():
            for split in stage.splits:
                for transfer in split.transfers:
                    maker = self._stage_of(transfer.origin)
                    if maker is not stage:
                        maker.sends.append(transfer)
        for name, places in plan.inputs.items():
            for device, t in places:
                self._stage_of(device).inputs.append((name, device, t))
        for output in outputs:
            device, t = plan.where(output)
            self._stage_of(device).outputs.append((output, device, t))

    def _stage_of(self, device: Device) -> Stage:
        return next(s for s in self.stages if _together(s.device, device))

    def run(self, inputs: Mapping[str, Bytes]) -> Outputs:
        """Run the plan on this thread; return its outputs under way."""
        plan = self.plan
        for name, data in inputs.items():
            plan.set_bytes(name, data.data)
        plan.run()
        return [x for stage in self.stages for x in _read(stage)]


def _together(a: Device, b: Device) -> bool:
    return a is b or a.shares_with(b)


def _read(stage: Stage) -> Iterator[tuple[Tensor, bytearray, Waiting]]:
    for output, device, t in stage.outputs:
        data = bytearray(t.nbytes)
        yield output, data, device.start_read(t, data)


class Pipeline:
    """Threads for the servers of a model; a context manager that ends them.

    Jobs are begun in the order in which they are given. What one raises, the result of every later job of the same
    server raises too, or it computes on what is then worthless: a caller stops at the first error.
    """

    def __init__(self) -> None:
        self._threads: list[tuple[Device, ThreadPoolExecutor]] = []
        self._in_flight: list[Future[Outputs]] = []
        self._arriving: list[tuple[ThreadPoolExecutor, list[Waiting]]] = []

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, staged: Staged, inputs: Mapping[str, Bytes]) -> Future[Outputs]:
        """Begin a job; its result are the outputs under way.

        Waits while as many jobs as the plan has stages, and one more, are under way: that keeps all servers busy and
        bounds what is held for them.
        """
        while len(self._in_flight) > len(staged.stages):
            oldest = self._in_flight.pop(0)
            if not wait([oldest], timeout=_PATIENCE_SECONDS).done:
                self._fetch()
            oldest.result()
        carried: dict[Transfer, tuple[bytearray, Waiting]] = {}
        made: Future[Outputs] | None = None
        arriving: list[tuple[ThreadPoolExecutor, list[Waiting]]] = []
        for stage in staged.stages:
            thread = self._thread(stage.device)
            arriving.append((thread, []))
            made = thread.submit(_run_stage, stage, inputs, carried, made, arriving[-1][1])
        assert made is not None
        # Behind this job's stages, so that servers have work while what they made before is fetched.
        self._fetch()
        self._arriving = arriving
        self._in_flight.append(made)
        return made

    def drain(self) -> None:
        """Wait until all jobs were handed to their last server."""
        self._fetch()
        while self._in_flight:
            self._in_flight.pop(0).result()

    def _fetch(self) -> None:
        """Let each server's thread take what the last job made for others.

        They may be busy for long, and a server that cannot get rid of a reply does nothing else, and gives up in time.
        """
        for thread, waits in self._arriving:
            thread.submit(_wait_for, waits)
        self._arriving = []

    def _thread(self, device: Device) -> ThreadPoolExecutor:
        for other, thread in self._threads:
            if _together(other, device):
                return thread
        thread = ThreadPoolExecutor(1, thread_name_prefix=f"pipeline {device}")
        self._threads.append((device, thread))
        return thread


def _run_stage(
    stage: Stage,
    inputs: Mapping[str, Bytes],
    carried: dict[Any, tuple[bytearray, Waiting]],
    before: Future[Outputs] | None,
    arriving: list[Waiting],
) -> Outputs:
    """Run one stage of one job on its server's thread; what it makes goes to `carried` as reads under way.

    The waits for these are listed in `arriving` too.
    """
    outputs = [] if before is None else before.result()
    for name, device, t in stage.inputs:
        device.write(t, inputs[name].data)
    for split in stage.splits:
        for transfer in split.transfers:
            if transfer in carried:
                data, arrival = carried.pop(transfer)
                arrival.result()
                split.device.write(transfer.copy, data)
            else:
                transfer.run(split.device)
        split.run()
    for transfer in stage.sends:
        data = bytearray(transfer.source.nbytes)
        arrival = transfer.origin.start_read(transfer.source, data)
        carried[transfer] = (data, arrival)
        arriving.append(arrival)
    outputs.extend(_read(stage))
    return outputs


def _wait_for(waits: Sequence[Waiting]) -> None:
    for arrival in waits:
        arrival.result()
