"""Devices, buffers and plans that end in a garbage cycle are freed in a safe order."""

from __future__ import annotations

import gc
import weakref

import numpy as np

from ggml_rpc.client.local import local_devices
from ggml_rpc.graph.builder import Graph


class Holder:
    """Something that keeps itself, and more, alive."""

    def __init__(self, *held: object) -> None:
        self.held = held
        self.itself = self


def test_a_plan_in_a_cycle() -> None:
    device = local_devices(threads=1)[0]
    g = Graph()
    out = g.output(g.add(device.tensor(np.ones(4, np.float32)), device.tensor(np.ones(4, np.float32))))
    plan = device.compile(g)
    plan.run()
    assert plan.read(out).tolist() == [2.0] * 4
    # The collector clears the oldest first: here the native plan, and what it belongs to, before what holds them.
    holders = [Holder(split.plan) for split in plan.splits] + [Holder(device)]
    gone = [weakref.ref(holder) for holder in holders]
    del device, g, out, plan, holders
    gc.collect()
    assert [holder() for holder in gone] == [None, None]
