"""Graphs that break a rule of the format, of memory or of an op's parameters, and index values out of range."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.ops import OP_BY_ID, OP_BY_NAME
from tests.support.wiretensor import Tensor, default_strides, graph_payload, patch, tensor, view
from tests.wire.frame_cases import Case
from tests.wire.session import BUFFER_BYTES, Attacker

GRAPH = "GRAPH_COMPUTE"
COMPUTE = int(TensorFlag.COMPUTE)

Shapes = Sequence[tuple[str, tuple[int, ...]]]


def _sum(a: Attacker) -> tuple[Tensor, Tensor, Tensor]:
    """Return a good graph of one ADD: sources x and y, node `victim`."""
    x, y = a.tensor(name="x"), a.tensor(name="y")
    return x, y, a.arena.node("ADD", "F32", (8, 4), [x, y], name="victim")


def _send(a: Attacker, payload: bytes) -> None:
    a.client.send(a.dialect.commands[Command.GRAPH_COMPUTE], payload)


# ---- Format ------------------------------------------------------------------------------------------------------


def _n_nodes_at(d: Dialect) -> int:
    return d.request_header(Command.GRAPH_COMPUTE) - 4


def _overwrite(payload: bytes, at: int, data: bytes) -> bytes:
    return payload[:at] + data + payload[at + len(data) :]


def _no_nodes(a: Attacker) -> None:
    _send(a, graph_payload(a.dialect, [], tensors=[a.tensor()]))


def _counts(n_nodes: int | None, n_tensors: int | None) -> Callable[[Attacker], None]:
    def act(a: Attacker) -> None:
        payload = graph_payload(a.dialect, [_sum(a)[2]])
        at = _n_nodes_at(a.dialect)
        if n_nodes is not None:
            payload = _overwrite(payload, at, struct.pack("<I", n_nodes))
        if n_tensors is not None:
            payload = _overwrite(payload, at + 4 + 8, struct.pack("<I", n_tensors))
        _send(a, payload)

    return act


def _trailing(extra: int) -> Callable[[Attacker], None]:
    def act(a: Attacker) -> None:
        payload = graph_payload(a.dialect, [_sum(a)[2]])
        _send(a, payload + bytes(extra) if extra > 0 else payload[:extra])

    return act


def _node_id(value: int) -> Callable[[Attacker], None]:
    def act(a: Attacker) -> None:
        payload = graph_payload(a.dialect, [_sum(a)[2]])
        _send(a, _overwrite(payload, _n_nodes_at(a.dialect) + 4, struct.pack("<Q", value)))

    return act


def _id_zero(a: Attacker) -> None:
    x, _, node = _sum(a)
    x.id = 0
    _send(a, graph_payload(a.dialect, [node]))


def _same_id(a: Attacker) -> None:
    x, y, node = _sum(a)
    y.name = "victim"
    y.id = x.id
    _send(a, graph_payload(a.dialect, [node]))


def _missing(slot: str) -> Callable[[Attacker], None]:
    def act(a: Attacker) -> None:
        x, y, node = _sum(a)
        if slot == "view_src":
            node.view_src = tensor("F32", (8, 4))
        listed = [y, node] if slot == "src" else [x, y, node]
        _send(a, graph_payload(a.dialect, [node], tensors=listed))

    return act


def _forward(a: Attacker) -> None:
    x, y, node = _sum(a)
    _send(a, graph_payload(a.dialect, [node], tensors=[x, node, y]))


def _reordered(a: Attacker) -> None:
    x = a.tensor(name="x")
    first = a.arena.node("SQR", "F32", (8, 4), [x], name="victim")
    second = a.arena.node("SQR", "F32", (8, 4), [first], name="second")
    _send(a, graph_payload(a.dialect, [second, first], tensors=[x, first, second]))


def _self_source(slot: int, op: str) -> Callable[[Attacker], None]:
    def act(a: Attacker) -> None:
        node = a.arena.node(op, "F32", (8, 4), [a.tensor(name="x"), a.tensor(name="y")], name="victim")
        node.src[slot] = node
        _send(a, graph_payload(a.dialect, [node]))

    return act


def _self_view(a: Attacker) -> None:
    node = _sum(a)[2]
    node.view_src = node
    _send(a, graph_payload(a.dialect, [node]))


def _cycle(a: Attacker) -> None:
    x = a.tensor(name="x")
    first = a.arena.node("ADD", "F32", (8, 4), [x, x], name="victim")
    second = a.arena.node("ADD", "F32", (8, 4), [first, x], name="second")
    first.src[1] = second
    _send(a, graph_payload(a.dialect, [first, second], tensors=[x, first, second]))


def _deep_cycle(a: Attacker) -> None:
    """Thousands of nodes in a ring: a recursive reader would run out of stack."""
    x = a.tensor(name="x")
    ring = [tensor("F32", (8, 4), buffer=x.buffer, data=x.data, op=OP_BY_NAME["SQR"].id, flags=COMPUTE, name="victim")]
    for _ in range(5000):
        ring.append(
            tensor("F32", (8, 4), buffer=x.buffer, data=x.data, op=ring[0].op, flags=COMPUTE, src=[ring[-1]], name="r")
        )
    ring[0].src = [ring[-1]]
    _send(a, graph_payload(a.dialect, ring, tensors=ring))


def formats(dialect: Dialect) -> Iterator[Case]:
    """Break the format of the message."""
    yield Case("no nodes", _no_nodes, GRAPH)
    for count in (0, 2, 0xFFFF, 0x2000_0000, 0xFFFF_FFFF):
        yield Case(f"n_nodes {count}", _counts(count, None), GRAPH)
    for count in (0, 2, 4, 0xFFFF, 0x0F83_E0F8, 0xFFFF_FFFF):
        yield Case(f"n_tensors {count}", _counts(None, count), GRAPH)
    for extra in (-1, 1, -dialect.record.size, dialect.record.size):
        yield Case(f"{extra:+d} bytes", _trailing(extra), GRAPH)
    yield Case("node 0", _node_id(0), GRAPH)
    yield Case("node that is not listed", _node_id(0xDEAD), GRAPH)
    yield Case("id 0", _id_zero, GRAPH, "x")
    yield Case("id twice", _same_id, GRAPH, "victim")
    yield Case("source that is not listed", _missing("src"), GRAPH, "victim")
    yield Case("view_src that is not listed", _missing("view_src"), GRAPH, "victim")
    yield Case("source behind its node", _forward, GRAPH, "victim")
    yield Case("nodes in another order", _reordered, GRAPH, "victim")
    yield Case("ADD of itself", _self_source(1, "ADD"), GRAPH, "victim")
    yield Case("CPY from itself", _self_source(0, "CPY"), GRAPH, "victim")
    yield Case("view of itself", _self_view, GRAPH, "victim")
    yield Case("cycle of two", _cycle, GRAPH, "victim")
    yield Case("cycle of thousands", _deep_cycle, GRAPH, "victim")


# ---- Ops and their memory ----------------------------------------------------------------------------------------


def _op(number: int, n_src: int = 2) -> Callable[[Attacker], None]:
    """Name an op by its number on the wire."""

    def act(a: Attacker) -> None:
        x = a.tensor(name="x")
        node = a.arena.node("ADD", "F32", (8, 4), [x] * n_src, name="victim")
        payload = graph_payload(a.dialect, [node])
        last = len(payload) - a.dialect.record.size
        _send(a, payload[:last] + patch(a.dialect, payload[last:], "op", number))

    return act


Change = Callable[[Attacker, Tensor, Tensor], None]
"""Change the first source and the node of a good ADD."""


def _changed(change: Change) -> Callable[[Attacker], None]:
    def act(a: Attacker) -> None:
        x, _, node = _sum(a)
        change(a, x, node)
        _send(a, graph_payload(a.dialect, [node]))

    return act


def _set(which: int, **fields: object) -> Change:
    def change(_: Attacker, x: Tensor, node: Tensor) -> None:
        for name, value in fields.items():
            setattr((x, node)[which], name, value)

    return change


def _address(which: int, offset: int) -> Change:
    def change(a: Attacker, x: Tensor, node: Tensor) -> None:
        (x, node)[which].data = a.buffer.base + offset

    return change


def memory(_: Dialect) -> Iterator[Case]:
    """Let a node touch memory it must not."""
    places: dict[str, tuple[Change, str]] = {
        "result in no buffer": (_set(1, buffer=0, data=0), "victim"),
        "result in no buffer but with an address": (_set(1, buffer=0), "victim"),
        "result with an unknown handle": (_set(1, buffer=0x1234), "victim"),
        "source in no buffer": (_set(0, buffer=0, data=0), "victim"),
        "source with an unknown handle": (_set(0, buffer=0x1234), "victim"),
        "result behind the buffer": (_address(1, BUFFER_BYTES - 4), "victim"),
        "result before the buffer": (_address(1, -4), "victim"),
        "source behind the buffer": (_address(0, BUFFER_BYTES), "x"),
        "source before the buffer": (_address(0, -128), "x"),
        "source at an address that wraps": (_set(0, data=(1 << 64) - 64), "x"),
        "source with a stride out of the buffer": (_set(0, nb=[4, 1 << 20, 128, 128]), "x"),
        "source of a dead type": (_set(0, type=5), "x"),
        "result of an unknown type": (_set(1, type=0x7FFF_FFFF), "victim"),
        "source at an odd address": (_address(0, 1), "x"),
    }
    for label, (change, name) in places.items():
        yield Case(label, _changed(change), GRAPH, name)
    views: dict[str, tuple[int, list[int]]] = {
        "view behind its tensor": (128, [8, 4, 1, 1]),
        "view one row too long": (0, [8, 5, 1, 1]),
        "view at an offset that wraps": ((1 << 64) - 32, [8, 4, 1, 1]),
    }
    for label, (offset, ne) in views.items():

        def act(a: Attacker, offset: int = offset, ne: list[int] = ne) -> None:
            x = a.tensor(name="x")
            a.tensor(name="beside")
            v = view(x, "VIEW", ne, default_strides(0, ne), name="victim")
            v.view_offs = offset
            v.data = (v.data + offset) & ((1 << 64) - 1)
            _send(a, graph_payload(a.dialect, [v, a.arena.node("SQR", "F32", ne, [v], name="after")]))

        yield Case(label, act, GRAPH, "victim")

    def elsewhere(a: Attacker) -> None:
        """Give a view an address that its offset does not say."""
        x, other = a.tensor(name="x"), a.tensor(name="other")
        v = view(x, "VIEW", [8, 4, 1, 1], default_strides(0, [8, 4, 1, 1]), name="victim")
        v.data = other.data
        _send(a, graph_payload(a.dialect, [v, a.arena.node("SQR", "F32", (8, 4), [v], name="after")]))

    yield Case("view whose address is elsewhere", elsewhere, GRAPH, "victim")


def ops(dialect: Dialect) -> Iterator[Case]:
    """Name ops that do not exist or are never accepted."""
    for number in (len(dialect.ops), 127, 200, 255, 256, 0x7FFF_FFFF, 0xFFFF_FFFF):
        yield Case(f"op {number}", _op(number), GRAPH, "victim")
    for number, internal in enumerate(dialect.ops):
        spec = OP_BY_ID[internal]
        if spec.refused:
            yield Case(f"op {spec.name}", _op(number, max(1, spec.min_src)), GRAPH, "victim")


def _with(op: str, type: str, ne: tuple[int, ...], shapes: Shapes, params: bytes) -> Case:
    def act(a: Attacker) -> None:
        src = [a.tensor(t, n, name="x") for t, n in shapes]
        node = a.arena.node(op, type, ne, list(src), params=params, name="victim")
        _send(a, graph_payload(a.dialect, [node]))

    return Case("", act, GRAPH, "victim")


def _words(*values: int | float) -> bytes:
    return b"".join(struct.pack("<f" if isinstance(v, float) else "<i", v) for v in values)


def _rope(n_dims: int = 8, mode: int = 0, sections: tuple[int, int, int, int] = (0, 0, 0, 0)) -> bytes:
    return _words(0, n_dims, mode, 0, 64, 10000.0, 1.0, 0.0, 1.0, 32.0, 1.0, *sections)


def parameters(_: Dialect) -> Iterator[Case]:
    """Give parameters that no constructor of a client would."""
    f = "F32"
    one: Shapes = [(f, (8, 4))]
    rope: Shapes = [(f, (8, 2, 3)), ("I32", (3,))]
    rows: dict[str, tuple[str, tuple[int, ...], Shapes, bytes]] = {
        "UNARY kind 22": ("UNARY", (8, 4), one, _words(22)),
        "UNARY kind -1": ("UNARY", (8, 4), one, _words(-1)),
        "GLU kind 7": ("GLU", (4, 4), one, _words(7, 0)),
        "GLU kind -1": ("GLU", (4, 4), one, _words(-1, 0)),
        "GLU of an odd row": ("GLU", (4, 4), [(f, (9, 4))], _words(2, 0)),
        "CONCAT dimension 4": ("CONCAT", (8, 8), [(f, (8, 4)), (f, (8, 4))], _words(4)),
        "CONCAT dimension -1": ("CONCAT", (8, 8), [(f, (8, 4)), (f, (8, 4))], _words(-1)),
        "ROPE of more than a row": ("ROPE", (8, 2, 3), rope, _rope(n_dims=16)),
        "ROPE of an odd number": ("ROPE", (8, 2, 3), rope, _rope(n_dims=7)),
        "ROPE of a negative number": ("ROPE", (8, 2, 3), rope, _rope(n_dims=-8)),
        "ROPE mode 1": ("ROPE", (8, 2, 3), rope, _rope(mode=1)),
        "ROPE with too few positions": ("ROPE", (8, 2, 3), [(f, (8, 2, 3)), ("I32", (2,))], _rope()),
        "ROPE MROPE with one position a token": ("ROPE", (8, 2, 3), rope, _rope(mode=8, sections=(1, 1, 1, 1))),
        "ROPE MROPE without sections": ("ROPE", (8, 2, 3), [(f, (8, 2, 3)), ("I32", (12,))], _rope(mode=8)),
        "SOFT_MAX ALiBi without a mask": ("SOFT_MAX", (8, 4), one, _words(1.0, 8.0)),
    }
    for label, (op, ne, shapes, params) in rows.items():
        yield Case(label, _with(op, f, ne, shapes, params).act, GRAPH, "victim")
    yield Case("ARGSORT order 2", _with("ARGSORT", "I32", (8, 4), one, _words(2)).act, GRAPH, "victim")


# ---- Index values ------------------------------------------------------------------------------------------------

BAD_ROWS = (-1, 4, 1 << 20, -(1 << 31), (1 << 31) - 1)
BAD_ROWS_64 = (*BAD_ROWS, 1 << 32, -(1 << 63), (1 << 63) - 1)


def _get_rows(a: Attacker) -> tuple[Tensor, Tensor]:
    x, ids = a.tensor(name="x"), a.tensor("I32", (3,), name="ids")
    return ids, a.arena.node("GET_ROWS", "F32", (8, 3), [x, ids], name="victim")


def _set_rows(type: str) -> Callable[[Attacker], tuple[Tensor, Tensor]]:
    def build(a: Attacker) -> tuple[Tensor, Tensor]:
        values, ids, target = a.tensor(ne=(8, 3), name="v"), a.tensor(type, (3,), name="ids"), a.tensor(name="t")
        node = tensor("F32", (8, 4), op=OP_BY_NAME["SET_ROWS"].id, flags=COMPUTE, name="victim")
        node.src, node.view_src = [values, ids, target], target
        if a.dialect.set_rows_by_view:
            node.src.pop()
        node.buffer, node.data = target.buffer, target.data
        return ids, node

    return build


def _mul_mat_id(a: Attacker) -> tuple[Tensor, Tensor]:
    experts, x, ids = a.tensor(ne=(8, 2, 4), name="e"), a.tensor(ne=(8, 1, 3), name="x"), a.tensor("I32", (1, 3), "ids")
    return ids, a.arena.node("MUL_MAT_ID", "F32", (2, 1, 3), [experts, x, ids], name="victim")


def _indexed(build: Callable[[Attacker], tuple[Tensor, Tensor]], value: int, again: bool) -> Callable[[Attacker], None]:
    """Compute with one bad index of three; with `again` it turns bad only between two runs of a stored graph."""

    def act(a: Attacker) -> None:
        ids, node = build(a)
        letter = "q" if ids.type == 27 else "i"
        a.client.set(ids, struct.pack(f"<3{letter}", 0, 1 if again else value, 3))
        a.client.compute([node], uid=9)
        if again:
            a.client.barrier()
            a.client.set(ids, struct.pack(f"<3{letter}", 0, 1, value))
            a.client.run_again([node], uid=9)
        # Graphs run beside the connection: reading the result waits for its run, and meets its error.
        a.client.get(node)

    return act


def indices(dialect: Dialect) -> Iterator[Case]:
    """Put index values out of range."""
    builders = {
        "SET_ROWS by I64": (_set_rows("I64"), BAD_ROWS_64),
        "SET_ROWS by I32": (_set_rows("I32"), BAD_ROWS),
    }
    if not dialect.ik_meaning:  # there such a row counts as zeros
        builders |= {"GET_ROWS": (_get_rows, BAD_ROWS), "MUL_MAT_ID": (_mul_mat_id, BAD_ROWS)}
    for label, (build, values) in builders.items():
        for value in values:
            yield Case(f"{label} index {value}", _indexed(build, value, False), GRAPH, "victim")
        yield Case(f"{label} index turns bad", _indexed(build, -1, True), f"{GRAPH}|GRAPH_RECOMPUTE", "victim")


def all_cases(dialect: Dialect) -> list[Case]:
    """Return every case for a protocol."""
    return [c for maker in (formats, memory, ops, parameters, indices) for c in maker(dialect)]
