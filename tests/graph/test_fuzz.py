"""Whatever bytes arrive, the parser either raises a typed error or yields a graph that stays in its buffers."""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggml_rpc.errors import RpcError
from ggml_rpc.graph._graph import CheckedGraph, check_graph
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import DEFAULT as DIALECT
from ggml_rpc.spec.ops import OP_COUNT
from ggml_rpc.wire._codec import Codec
from tests.graph.examples import EXAMPLES, Example, arena
from tests.graph.layout import assert_inside
from tests.graph.recorded import Recorded, all_graphs
from tests.support.wiretensor import graph_payload, patch, post_order

FUZZ = settings(suppress_health_check=list(HealthCheck), max_examples=300)

# Values at which arithmetic of 32 and 64 bits goes wrong, and small ones that often are nearly right.
EDGES = [
    0,
    1,
    2,
    3,
    4,
    8,
    31,
    32,
    33,
    64,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]

FIELDS = {"id": 1, "type": 1, "buffer": 1, "ne": 4, "nb": 4, "op": 1, "op_params": 16, "flags": 1, "src": 10}
FIELDS |= {"view_src": 1, "view_offs": 1, "data": 1}


def parse(
    codec: Codec, payload: bytes, buffers: list[tuple[int, int, int, int]], devices: int = 1
) -> CheckedGraph | None:
    """Return the graph if it is legal, after asserting that it stays in its buffers."""
    try:
        checked = check_graph(codec, payload, buffers, devices)
    except RpcError as error:
        if not str(error).startswith("GRAPH_COMPUTE"):
            raise
        return None
    assert_inside(checked, buffers)
    return checked


@cache
def small_graphs() -> tuple[Recorded, ...]:
    """Return recorded graphs of at most 64 KiB, the first of each size."""
    by_size = {len(g.payload): g for g in all_graphs() if len(g.payload) <= 1 << 16}
    return tuple(by_size[n] for n in sorted(by_size))


@FUZZ
@given(st.sampled_from(["7.0", "8.0"]), st.binary(max_size=2000))
def test_random_bytes(name: str, payload: bytes) -> None:
    parse(Codec(dialects.find(name)), payload, [(1, 1 << 30, 1 << 20, 0)])


@FUZZ
@given(st.integers(0, 2**64 - 1))
def test_random_records_in_a_sound_frame(seed: int) -> None:
    """Frames whose counts fit, so that the records themselves are looked at."""
    rng = np.random.default_rng(seed)

    def pick(*values: int) -> int:
        return values[rng.integers(len(values))]

    n = int(rng.integers(1, 6))
    m = int(rng.integers(n, 9))
    ids = sorted(rng.integers(1, m + 1, n).tolist()) if rng.integers(4) else rng.integers(0, 10, n).tolist()
    records = []
    for i in range(m):
        record = rng.bytes(DIALECT.record.size)
        item = pick(1, 2, 4, 8)
        fields = {"id": [i + 1], "type": [pick(0, 0, 0, 1, 2, 8, 24, 26, 27, 30)], "op": [pick(*range(OP_COUNT))]}
        fields |= {"buffer": [pick(0, 1, 1, 1, 2)], "data": [(1 << 30) + 64 * pick(*range(1 << 14))], "flags": [16]}
        fields["ne"] = [pick(0, 1, 1, 2, 4, 32, 64, 2**32 - 1) for _ in range(4)]
        fields["nb"] = [item * pick(0, 1, 2, 4, 32, 64, 2**28) for _ in range(4)]
        fields["src"] = [pick(0, 0, 0, *range(1, i + 2)) for _ in range(10)]
        fields |= {"view_src": [pick(0, 0, 0, *range(1, i + 2))], "view_offs": [pick(0, 0, 64, 2**64 - 64)]}
        for name, values in fields.items():
            for index, value in enumerate(values):
                record = patch(DIALECT, record, name, value, index=index)
        records.append(record)
    payload = struct.pack("<IQI", 0, 1, n) + struct.pack(f"<{n}Q", *ids) + struct.pack("<I", m) + b"".join(records)
    parse(Codec(DIALECT), payload, [(1, 1 << 30, 1 << 20, 0)])


@FUZZ
@given(st.data())
def test_recorded_graphs_with_changed_fields(data: st.DataObject) -> None:
    g = data.draw(st.sampled_from(small_graphs()))
    record = g.dialect.record
    (n_tensors,) = tail_count(g)
    start = len(g.payload) - n_tensors * record.size
    payload = bytearray(g.payload)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(FIELDS)))
        index = data.draw(st.integers(0, FIELDS[name] - 1))
        at = start + record.size * data.draw(st.integers(0, n_tensors - 1))
        value = data.draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1))
        payload[at : at + record.size] = patch(
            g.dialect, bytes(payload[at : at + record.size]), name, value, index=index
        )
    parse(Codec(g.dialect), bytes(payload), g.buffers, g.n_devices)


@FUZZ
@given(st.data())
def test_recorded_graphs_with_flipped_bytes(data: st.DataObject) -> None:
    g = data.draw(st.sampled_from(small_graphs()))
    payload = bytearray(g.payload)
    for _ in range(data.draw(st.integers(1, 8))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 8, 296]))
    parse(Codec(g.dialect), bytes(payload[: len(payload) - cut]), g.buffers, g.n_devices)


def tail_count(g: Recorded) -> tuple[int]:
    """Return the number of tensors in a payload."""
    at = next(f.offset for f in g.dialect.request_fields(Command.GRAPH_COMPUTE) if f.name == "n_nodes")
    (n_nodes,) = struct.unpack_from("<I", g.payload, at)
    count: tuple[int] = struct.unpack_from("<I", g.payload, at + 4 + 8 * n_nodes)
    return count


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
def test_examples_with_several_changes(example: Example) -> None:
    """Random edges in random fields of every op's example: the rules must hold together, not only one by one."""
    rng = np.random.default_rng(list(example.id.encode()))
    dialect = example.dialect
    codec, record = Codec(dialect), dialect.record
    a = arena()
    subject = example.build(a)
    sound = graph_payload(dialect, [subject])
    buffers = [(a.handle, a.base, a.size, 0)]
    m = len(post_order([subject]))
    names = ["ne", "nb", "op_params", "type", "data", "op"]
    for _ in range(400):
        payload = bytearray(sound)
        for _ in range(rng.integers(1, 4)):
            name = names[rng.choice(6, p=[0.35, 0.2, 0.25, 0.1, 0.05, 0.05])]
            at = len(sound) - record.size * int(rng.integers(1, m + 1))
            now = bytes(payload[at : at + record.size])
            index = int(rng.integers(0, FIELDS[name]))
            old = int.from_bytes(now[record.offsets[name] + 4 * index :][:4], "little")
            value = [int(rng.choice(EDGES[:15])), old + 1, old * 2, old // 2, old - 1, 0, 1][int(rng.integers(0, 7))]
            if name == "data":
                value = a.base + int(rng.integers(0, a.size // 4)) * 4
            payload[at : at + record.size] = patch(dialect, now, name, value, index=index)
        parse(codec, bytes(payload), buffers)
