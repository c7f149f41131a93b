"""Graphs that the rules let through are run: sizes, strides, places, parameters and contents that no client has.

Nothing but the result (and what the op writes besides) may change, no run may go on for ever, and under the address
sanitizer (`make sanitize`) no kernel may read what lies between tensors. `GGML_RPC_FUZZ_RUNS` sets how many graphs of
each op are tried, `GGML_RPC_FUZZ_SEED` where to start.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest

from ggml_rpc.devices.cpu import CpuDevice, CpuPool
from ggml_rpc.errors import ComputeError, DeadlineExceeded, RpcError
from ggml_rpc.graph._graph import CheckedGraph, check_graph
from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.spec.types import TYPE_BY_ID, TYPE_BY_NAME
from ggml_rpc.wire._codec import Codec
from tests.graph.examples import EXAMPLES, Example
from tests.support.wiretensor import Arena, Tensor, default_strides, graph_payload

RUNS = int(os.environ.get("GGML_RPC_FUZZ_RUNS", "12"))
SEED = int(os.environ.get("GGML_RPC_FUZZ_SEED", "0"))
BYTES = 2 << 20
APART = 4096
SLACK = 512
"""Bytes behind the tail of a row that vectors may take in: buffers have so many behind their end."""

WRITTEN_SOURCES = {"IK_SSM_CONV": (4,), "DELTA_NET": (6,), "OPT_STEP_ADAMW": (2, 3)}
SIZES = (0, 1, 1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 64, 96, 100, 128, 256, 257, 512, 1024, 2048)
WORDS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 255, 256, 512, 1000, 65536, -1, -2, 2**31 - 1, -(2**31), 0x7FC00000)
INDICES = (0, 0, 0, 0, 1, 1, 2, 3, 5, 7, -1, 255, 2**31 - 1, -(2**31))
codec_of = cache(Codec)


@cache
def device() -> CpuDevice:
    """Return a device that gives up soon."""
    return CpuPool(2, None, 0.3).device()


class Poison:
    """Bytes that nobody may read, where the process runs under the address sanitizer."""

    def __init__(self, memory: np.ndarray) -> None:
        process = ctypes.CDLL(None)
        self.set = getattr(process, "__asan_poison_memory_region", None)
        self.unset = getattr(process, "__asan_unpoison_memory_region", None)
        self.memory = memory

    @contextmanager
    def all_but(self, kept: np.ndarray) -> Iterator[None]:
        """Poison what `kept`, a mask of the memory, leaves out."""
        start = self.memory.ctypes.data
        if self.set is not None:
            edges = np.flatnonzero(np.diff(np.concatenate([[True], kept, [True]]).astype(np.int8)))
            for begin, end in edges.reshape(-1, 2).tolist():
                self.set(ctypes.c_void_p(start + begin), ctypes.c_size_t(end - begin))
        try:
            yield
        finally:
            if self.unset is not None:
                self.unset(ctypes.c_void_p(start), ctypes.c_size_t(len(self.memory)))


def tensors_of(subject: Tensor) -> list[Tensor]:
    """Return a graph's tensors, each once."""
    found: list[Tensor] = []
    waiting = [subject]
    while waiting:
        t = waiting.pop()
        if not any(t is f for f in found):
            found.append(t)
            waiting += [s for s in (*t.src, t.view_src) if s is not None]
    return found


def resize(tensors: list[Tensor], rng: np.random.Generator) -> None:
    """Give every dimension of one size another, in all tensors or in one."""
    old, new = int(rng.choice(sorted({n for t in tensors for n in t.ne}))), int(rng.choice(SIZES))
    for t in [tensors[int(rng.integers(len(tensors)))]] if rng.integers(4) == 0 else tensors:
        t.ne = [new if n == old and (old > 1 or rng.integers(8) == 0) else n for n in t.ne]
        t.ne[0] -= t.ne[0] % TYPE_BY_ID[t.type].block
        t.nb = default_strides(t.type, t.ne)


def retype(example: Example, subject: Tensor, tensors: list[Tensor], rng: np.random.Generator) -> None:
    """Give a source or the result another of its types, and all rows of that length whole blocks."""
    slots = [s for s in sorted(example.types) if s < 0 or (s < len(subject.src) and subject.src[s] is not None)]
    if not slots:
        return
    slot = int(rng.choice(slots))
    t = subject if slot < 0 else subject.src[slot]
    assert t is not None
    t.type = TYPE_BY_NAME[str(rng.choice(sorted(example.types[slot])))].id
    old, block = t.ne[0], TYPE_BY_ID[t.type].block
    new = -(-old // block) * block
    for other in tensors:
        other.ne = [new if n == old and old > 1 else n for n in other.ne]
        other.ne[0] -= other.ne[0] % TYPE_BY_ID[other.type].block
        other.nb = default_strides(other.type, other.ne)


def restride(tensors: list[Tensor], rng: np.random.Generator) -> None:
    """Repeat, spread or exchange the dimensions of one tensor."""
    t = tensors[int(rng.integers(len(tensors)))]
    i = int(rng.integers(0 if TYPE_BY_ID[t.type].block == 1 else 1, 4))
    kind = int(rng.integers(4))
    if kind == 0:
        t.nb[i] = 0
    elif kind == 1:
        t.nb[i] += int(rng.choice([4, 8, 64, 256]))
    elif kind == 2:
        for j in range(i, 4):
            t.nb[j] *= 2
    else:
        j = int(rng.integers(0 if TYPE_BY_ID[t.type].block == 1 else 1, 4))
        t.nb[i], t.nb[j] = t.nb[j], t.nb[i]
        if rng.integers(2):
            t.ne[i], t.ne[j] = t.ne[j], t.ne[i]


def parametrise(tensors: list[Tensor], rng: np.random.Generator) -> None:
    """Change a parameter of the subject."""
    words = list(struct.unpack("<16i", tensors[0].params.ljust(64, b"\0")))
    word = int(rng.integers(16 if rng.integers(4) == 0 else max(1, len(tensors[0].params) // 4)))
    words[word] = int(rng.choice([*WORDS, words[word] + 1, words[word] - 1, words[word] * 2]).astype(np.int32))
    tensors[0].params = struct.pack("<16i", *words)


def arrange(tensors: list[Tensor], base: int) -> None:
    """Place tensors one behind the other again; those that lay on each other still do."""
    groups: dict[int, list[Tensor]] = {}
    for t in tensors:
        groups.setdefault((t.view_src or t).data, []).append(t)
    at = base
    for group in groups.values():
        at += APART
        for t in group:
            t.data = at + t.view_offs
        at += max(t.view_offs + t.nbytes() for t in group)
        at += -at % 64


def move(tensors: list[Tensor], rng: np.random.Generator) -> None:
    """Lay a tensor on another, or beside where it was."""
    a, b = (tensors[int(rng.integers(len(tensors)))] for _ in range(2))
    a.data = b.data + int(rng.choice([0, 0, 4, 8, 64, 256, -64, APART]))


def fill(memory: np.ndarray, base: int, tensors: list[Tensor], rng: np.random.Generator) -> None:
    """Write contents: small and illegal indices, numbers, bits of any kind."""
    kind = int(rng.integers(3))
    memory[:] = rng.integers(0, 256, len(memory), dtype=np.uint8) if kind == 0 else 0xCB
    for t in tensors[::-1]:
        at, size = t.data - base, t.nbytes()
        if at < 0 or at + size > len(memory) or size <= 0:
            continue
        name = TYPE_BY_ID[t.type].name
        part = memory[at : at + size]
        if name in ("I32", "I64"):
            dtype = np.int32 if name == "I32" else np.int64
            n = size // np.dtype(dtype).itemsize
            values = rng.integers(0, 3, n) if rng.integers(2) else rng.choice(INDICES, n)
            part[: n * np.dtype(dtype).itemsize] = values.astype(dtype).view(np.uint8)
        elif kind == 1 and name == "F32":
            part[: size // 4 * 4] = rng.standard_normal(size // 4).astype(np.float32).view(np.uint8)
        elif kind == 2:
            part[:] = rng.choice(np.frombuffer(b"\0\0\x80\xff\x7f\xc0\x3c\x01", np.uint8), size)


def written(checked: CheckedGraph, memory: np.ndarray) -> np.ndarray:
    """Return a mask of the bytes that the graph may change."""
    mask = np.zeros(len(memory), bool)
    for i in checked.nodes:
        node = checked.tensors[i]
        slots = WRITTEN_SOURCES.get(OP_BY_ID[node.op].name, ())
        for t in (node, *(checked.tensors[node.src[s]] for s in slots if s < len(node.src) and node.src[s] >= 0)):
            mask[t.offset : t.offset + t.extent] = True
    return mask


def readable(checked: CheckedGraph, memory: np.ndarray) -> np.ndarray:
    """Return a mask of the bytes that lie in a tensor, or little behind one."""
    mask = np.zeros(len(memory), bool)
    for t in checked.tensors:
        if t.extent:
            mask[t.offset : t.offset + t.extent + SLACK] = True
    return mask


def build(example: Example, arena: Arena, rng: np.random.Generator) -> Tensor:
    """Return the example with a few changes."""
    subject = example.build(arena)
    tensors = tensors_of(subject)
    acts = (resize, resize, restride, parametrise)
    if rng.integers(2):
        retype(example, subject, tensors, rng)
    for _ in range(int(rng.integers(0, 4))):
        acts[int(rng.integers(len(acts)))](tensors, rng)
    arrange(tensors, arena.base)
    if rng.integers(3) == 0:
        move(tensors, rng)
    return subject


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
def test_what_is_legal_stays_in_its_results(example: Example) -> None:
    rng = np.random.default_rng([SEED, *example.id.encode()])
    codec = codec_of(example.dialect)
    buffer = device().alloc(BYTES)
    memory = np.frombuffer(buffer, np.uint8)
    poison = Poison(memory)
    place = (buffer.handle, buffer.base, buffer.size, 0)
    for _ in range(RUNS):
        subject = build(example, Arena(buffer.handle, buffer.base, BYTES, alignment=APART), rng)
        try:
            payload = graph_payload(example.dialect, [subject])
            checked = check_graph(codec, payload, [place])
            plan = device().compile(codec, payload, [buffer])
        except RpcError:
            continue
        fill(memory, buffer.base, tensors_of(subject), rng)
        before = memory.copy()
        try:
            with poison.all_but(readable(checked, memory)):
                plan.run()
        except (ComputeError, DeadlineExceeded):  # an index that is out of range, or a long way to go
            pass
        changed = np.flatnonzero((memory != before) & ~written(checked, memory))
        assert not len(changed), f"{len(changed)} bytes from {changed[0]} on lie in no result of {subject}"
