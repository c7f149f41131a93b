"""A bench that reads and writes memory through the device, in order with what the driver does late."""

from __future__ import annotations

import numpy as np

from tests.support import device
from tests.support.wiretensor import Tensor


class Bench(device.Bench):
    """See `tests.support.device.Bench`."""

    def run(self, *nodes: Tensor) -> None:
        """Compute the nodes in this order. What the driver does late may come after the poison between tensors."""
        self.compile(nodes).run()

    def write(self, t: Tensor, data: bytes) -> None:
        """Copy bytes to the start of a tensor."""
        self.buffer.write(t.data - self.buffer.base, bytearray(data))

    def raw(self, t: Tensor) -> bytes:
        """Return the bytes from the first to the last of a tensor."""
        return bytes(self.buffer.read(t.data - self.buffer.base, t.nbytes()))

    def read(self, t: Tensor) -> np.ndarray:
        """Bring the memory here first."""
        self.memory[:] = np.frombuffer(self.buffer.read(0, self.buffer.size), np.uint8)
        array = super().read(t)
        return array.reshape(array.shape[2:] if array.shape[:2] == (1, 1) else array.shape)
