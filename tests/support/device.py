"""Run single graphs on a device, through the same parser and plans as a client's graphs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ggml_rpc.devices._device import NativeDevice
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.ops import OP_BY_NAME
from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME
from ggml_rpc.wire._codec import Codec
from tests.support.wiretensor import Tensor, default_strides, graph_payload

ALIGNMENT = 64
POISON = 0xCB  # a NaN in no float type, but far from any result, so that an unwritten element shows

NUMPY_TYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


class Bench:
    """Place tensors in one buffer of a device, run graphs over them and read results.

    Shapes are given and returned in NumPy's order (last dimension fastest): `(2, 3, 4)` is `ne = [4, 3, 2, 1]`.

    Parameters
    ----------
    device : NativeDevice
        Where to run.
    size : int
        Bytes for all tensors of the test.
    dialect : Dialect
        How graphs reach the device. Values of enumerations in `params` are internal ids.
    """

    def __init__(self, device: NativeDevice, size: int = 16 << 20, dialect: Dialect = LLAMA_8_0) -> None:
        self.device = device
        self.dialect = dialect
        self.codec = Codec(dialect)
        self.buffer = device.alloc(size)
        # A device whose memory the host cannot address has a mirror of it.
        mirror = getattr(device, "mirror", None)
        self.memory = mirror(self.buffer) if mirror else np.frombuffer(self.buffer, dtype=np.uint8)
        self.memory[:] = POISON
        self.used = 0
        self.gaps: list[slice] = []  # what lies between tensors

    def place(
        self, type_name: str, shape: Sequence[int], strides: Sequence[int] | None = None, name: str = ""
    ) -> Tensor:
        """Reserve memory for a tensor; `strides` in bytes, in NumPy's order."""
        ne = [*reversed(shape)] + [1] * (4 - len(shape))
        type_id = TYPE_BY_NAME[type_name].id
        nb = default_strides(type_id, ne)
        if strides is not None:
            nb = [*reversed(strides)] + [1] * (4 - len(shape))
            for i in range(len(shape), 4):
                nb[i] = nb[i - 1] * ne[i - 1]
        t = Tensor(type_id, ne, nb, buffer=self.buffer.handle, data=self.buffer.base + self.used, name=name)
        end = self.used + t.nbytes()
        self.used += -(-t.nbytes() // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        self.gaps.append(slice(end, self.used))
        if self.used > self.buffer.size:
            raise ValueError(f"the test needs more than {self.buffer.size} bytes")
        return t

    def put(self, array: np.ndarray, type_name: str | None = None, name: str = "") -> Tensor:
        """Place a contiguous tensor with the array's contents; BF16 takes f32 arrays."""
        if type_name is None:
            type_name = {v: k for k, v in NUMPY_TYPES.items()}[array.dtype]
        t = self.place(type_name, array.shape, name=name)
        if type_name == "BF16":
            array = f32_to_bf16(array)
        self.write(t, np.ascontiguousarray(array).tobytes())
        return t

    def put_raw(self, type_name: str, shape: Sequence[int], data: bytes, name: str = "") -> Tensor:
        """Place a contiguous tensor (quantised types too) with these bytes."""
        t = self.place(type_name, shape, name=name)
        self.write(t, data)
        return t

    def view(
        self, base: Tensor, type_name: str, shape: Sequence[int], strides: Sequence[int], offset: int = 0
    ) -> Tensor:
        """Return a view of `base` (op VIEW); strides in bytes, in NumPy's order."""
        ne = [*reversed(shape)] + [1] * (4 - len(shape))
        nb = [*reversed(strides)]
        while len(nb) < 4:
            nb.append(nb[-1] * ne[len(nb) - 1])
        return Tensor(
            TYPE_BY_NAME[type_name].id,
            ne,
            nb,
            buffer=base.buffer,
            data=base.data + offset,
            op=OP_BY_NAME["VIEW"].id,
            src=[base],
            view_src=base,
            view_offs=offset,
            name=base.name + " (view)",
        )

    def permute(self, base: Tensor, axes: Sequence[int]) -> Tensor:
        """Return a view of `base` with ggml axes reordered: result axis i is axis axes[i] of the base."""
        t = self.view(base, TYPE_BY_ID[base.type].name, [1], [1])
        t.ne = [base.ne[a] for a in axes]
        t.nb = [base.nb[a] for a in axes]
        t.op = OP_BY_NAME["PERMUTE"].id
        return t

    def node(
        self,
        op: str,
        type_name: str,
        shape: Sequence[int],
        src: Sequence[Tensor | None],
        params: bytes = b"",
        *,
        out: Tensor | None = None,
        flags: int = 0,
        use_count: int = 0,
    ) -> Tensor:
        """Return a node to compute; its result lies in fresh poisoned memory, or where `out` lies."""
        t = self.place(type_name, shape, name=f"{op.lower()} result")
        if out is not None:
            t.data, t.nb = out.data, list(out.nb)
        t.op = OP_BY_NAME[op].id
        t.src = list(src)
        t.params = params
        t.flags = flags | TensorFlag.COMPUTE
        t.use_count = use_count
        return t

    def compile(self, nodes: Sequence[Tensor]):
        """Return the plan for a graph of these nodes, in this order."""
        return self.device.compile(self.codec, graph_payload(self.dialect, list(nodes)), [self.buffer])

    def run(self, *nodes: Tensor) -> None:
        """Compute the nodes in this order; nothing may be written between tensors."""
        self.compile(nodes).run()
        for gap in self.gaps:
            assert (self.memory[gap] == POISON).all(), f"bytes {gap.start} to {gap.stop} lie in no tensor"

    def write(self, t: Tensor, data: bytes) -> None:
        """Copy bytes to the start of a tensor."""
        at = t.data - self.buffer.base
        self.memory[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def raw(self, t: Tensor) -> bytes:
        """Return the bytes from the first to the last of a tensor."""
        at = t.data - self.buffer.base
        return self.memory[at : at + t.nbytes()].tobytes()

    def read(self, t: Tensor) -> np.ndarray:
        """Return the elements of a tensor of a plain type, strides resolved; BF16 as f32."""
        name = TYPE_BY_ID[t.type].name
        dtype = np.dtype("<u2") if name == "BF16" else NUMPY_TYPES[name]
        at = t.data - self.buffer.base
        array = np.ndarray(tuple(reversed(t.ne)), dtype, self.memory.data, at, tuple(reversed(t.nb))).copy()
        return bf16_to_f32(array) if name == "BF16" else array


def f32_to_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even and return the bits."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """Return the values of bf16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
