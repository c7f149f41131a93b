"""Which of several tables with one number a server has: found out by graphs that are legal in each of them.

3.0.0, 3.6.0 and ik_llama.cpp's 3.5.1 changed their op tables without a new number, and a server runs what a number
names in its own. A probe is a node whose number stands for one op in one table and for another one in the next, both
legal with these sources and parameters; the result tells which was run. Where no such node exists (ik_llama.cpp's
3.5.2), what is numbered differently stays unused.

A server that refuses a probe checks more than stock ones do: it closes the connection where those would compute. There
the tables can be tried one after the other (`reads`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggml_rpc.errors import ProtocolError
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._tensor import Tensor
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import GluKind, TriKind, UnaryKind
from ggml_rpc.spec.ops import OP_BY_ID, OP_BY_NAME

if TYPE_CHECKING:
    from .remote import RemoteDevice

F32 = np.dtype("<f4")
_X = np.array([[-1.0, 2.0], [3.0, 5.0]], F32)
_ROW = np.array([-1.0, 2.0, 3.0, 5.0], F32)
_Y = np.array([[0.5, -3.0], [2.0, 7.0]], F32)
_RATE, _DECAY = 0.5, 0.25


@dataclass(frozen=True)
class Probe:
    """A node and what each op would make of it.

    Attributes
    ----------
    op : str
        The op as which it is written.
    sources : tuple of ndarray
        float32.
    word : int
        The first parameter word, whatever it means.
    inplace : bool
        The result lies on source 0.
    results : mapping of str to ndarray
        By op.
    """

    op: str
    sources: tuple[NDArray[Any], ...]
    word: int
    inplace: bool
    results: Mapping[str, NDArray[Any]]


# As a float, the word 1 or 4 is too small to change anything: an epsilon, a slope or a factor of zero.
PROBES = (
    Probe(
        "NORM",
        (_ROW,),
        1,
        False,
        {
            "NORM": (_ROW - _ROW.mean()) / _ROW.std(),
            "RMS_NORM": _ROW / np.sqrt(np.mean(_ROW * _ROW)),
        },
    ),
    Probe(
        "TRI",
        (_X,),
        int(TriKind.UPPER),
        False,
        {"TRI": np.triu(_X, 1), "LEAKY_RELU": np.maximum(_X, 0)},
    ),
    Probe(
        "HADAMARD",
        (_ROW,),
        4,
        False,
        {
            "HADAMARD": np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], F32) @ _ROW / 2,
            "SCALE": np.zeros(4, F32),
        },
    ),
    Probe(
        "OPT_STEP_SGD",
        (_X, _Y, np.array([_RATE, _DECAY], F32)),
        int(GluKind.REGLU),
        True,
        {"OPT_STEP_SGD": _X * (1 - _RATE * _DECAY) - _RATE * _Y, "GLU": np.maximum(_X, 0) * _Y},
    ),
)

_UNARY = Probe("UNARY", (_ROW,), int(UnaryKind.RELU), False, {})


def narrow(device: RemoteDevice, candidates: Sequence[Dialect]) -> tuple[Dialect, ...]:
    """Return those of the tables that the server can have.

    Parameters
    ----------
    device : RemoteDevice
        Any device of the server.
    candidates : sequence of Dialect
        Tables with one record layout.

    Raises
    ------
    ProtocolError
        If the results fit none of them.
    """
    left = tuple(candidates)
    for probe in PROBES:
        for table in left:
            number = table.op_numbers.get(OP_BY_NAME[probe.op].id)
            if number is None:
                continue
            meanings = {d: _name(d, number) for d in left}
            if len(set(meanings.values())) > 1 and set(meanings.values()) <= set(probe.results):
                made = _run(device, table, probe)
                left = tuple(d for d in left if _agree(made, probe.results[meanings[d]]))
                if not left:
                    raise ProtocolError(f"{device}: op {number} is none of {', '.join(sorted(set(meanings.values())))}")
                break
    return left


def reads(device: RemoteDevice) -> bool:
    """Tell whether a server that checks what it is sent reads a graph as the table of its connection means it.

    Only for servers that have refused a probe: another one would run whatever the number names.

    Raises
    ------
    ServerRefused
        If it refuses the graph.
    """
    return _agree(_run(device, device.server.dialect, _UNARY), np.maximum(_ROW, 0))


def _name(dialect: Dialect, number: int) -> str:
    internal = dialect.ops[number] if number < len(dialect.ops) else -1
    return OP_BY_ID[internal].name if internal in OP_BY_ID else ""


def _agree(made: NDArray[Any], expected: NDArray[Any]) -> bool:
    return bool(np.allclose(made, expected.reshape(-1), rtol=1e-3, atol=1e-5))


def _run(device: RemoteDevice, table: Dialect, probe: Probe) -> NDArray[Any]:
    sources = [Tensor("F32", a.shape[::-1], name=f"probe {i}") for i, a in enumerate(probe.sources)]
    root = sources[0] if probe.inplace else None
    params = struct.unpack("<16i", struct.pack("<i", probe.word).ljust(64, b"\0"))
    node = Tensor("F32", sources[0].ne, op=probe.op, src=sources, params=params, view_src=root, name="probe")
    buffers = device.place(sources if root is not None else [*sources, node])
    for t, a in zip(sources, probe.sources, strict=True):
        device.write(t, a)
    device.run_encoded(Encoder((table,)).graph([node], device.number))
    made = np.frombuffer(device.read_bytes(node), F32)
    for buffer in buffers:
        buffer.free()
    return made
