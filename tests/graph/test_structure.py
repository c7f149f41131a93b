"""What holds for a graph as a whole: its frame, its ids, the order of its tensors, views, devices and flags."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from ggml_rpc.errors import GraphError, ProtocolError, RpcError, SessionError
from ggml_rpc.graph._graph import CheckedGraph, check_graph
from ggml_rpc.spec import dialects
from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.enums import TensorFlag
from ggml_rpc.spec.limits import MAX_GRAPH_NODES, MAX_GRAPH_TENSORS
from ggml_rpc.spec.ops import OP_BY_NAME
from ggml_rpc.wire._codec import Codec
from tests.graph.examples import arena
from tests.support.wiretensor import Arena, Tensor, default_strides, graph_payload, patch, post_order, view

NAMES = ("7.0", "8.0")


@pytest.fixture(params=NAMES)
def dialect(request: pytest.FixtureRequest) -> dialects.Dialect:
    return dialects.find(request.param)


class Chain:
    """x and y, sum = x + y, root = sqrt(sum), in one buffer."""

    def __init__(self, dialect: dialects.Dialect) -> None:
        self.dialect, self.codec, self.arena = dialect, Codec(dialect), arena()
        self.x = self.arena.leaf("F32", (64, 4), "x")
        self.y = self.arena.leaf("F32", (64, 4), "y")
        self.sum = self.arena.node("ADD", "F32", (64, 4), [self.x, self.y], name="sum")
        self.root = self.arena.node("SQRT", "F32", (64, 4), [self.sum], name="root")
        self.nodes = [self.sum, self.root]

    def payload(self, **options: object) -> bytes:
        return graph_payload(self.dialect, self.nodes, **options)  # type: ignore[arg-type]

    def check(self, payload: bytes | None = None, devices: int = 1, **options: object) -> CheckedGraph:
        data = self.payload(**options) if payload is None else payload
        return check_graph(self.codec, data, [(self.arena.handle, self.arena.base, self.arena.size)], devices)


@pytest.fixture
def chain(dialect: dialects.Dialect) -> Chain:
    return Chain(dialect)


def test_chain_is_legal(chain: Chain) -> None:
    checked = chain.check()
    assert [checked.tensors[i].name for i in checked.nodes] == ["sum", "root"]
    assert [t.src for t in checked.tensors] == [(), (), (0, 1), (2,)]
    assert checked.tensors[3].offset == chain.root.data - chain.arena.base


def test_every_truncation_is_refused(chain: Chain) -> None:
    payload = chain.payload()
    for n in range(len(payload)):
        with pytest.raises(ProtocolError, match="GRAPH_COMPUTE"):
            chain.check(payload[:n])
    for extra in (1, 8, chain.dialect.record.size):
        with pytest.raises(ProtocolError, match="GRAPH_COMPUTE"):
            chain.check(payload + bytes(extra))


@pytest.mark.parametrize("count", [0, 1, 3, 4, MAX_GRAPH_NODES + 1, 2**31, 2**32 - 1])
def test_wrong_number_of_nodes(chain: Chain, count: int) -> None:
    payload = bytearray(chain.payload())
    at = next(f.offset for f in chain.dialect.request_fields(Command.GRAPH_COMPUTE) if f.name == "n_nodes")
    struct.pack_into("<I", payload, at, count)
    with pytest.raises(RpcError, match="GRAPH_COMPUTE"):
        chain.check(bytes(payload))


@pytest.mark.parametrize("count", [0, 1, 3, 5, MAX_GRAPH_TENSORS + 1, 2**31, 2**32 - 1])
def test_wrong_number_of_tensors(chain: Chain, count: int) -> None:
    payload = bytearray(chain.payload())
    at = len(payload) - 4 * chain.dialect.record.size - 4
    assert struct.unpack_from("<I", payload, at) == (4,)
    struct.pack_into("<I", payload, at, count)
    with pytest.raises(ProtocolError, match="number of tensors"):
        chain.check(bytes(payload))


def test_more_nodes_than_tensors(chain: Chain) -> None:
    chain.nodes = [chain.sum, chain.root, chain.root, chain.root, chain.root]
    with pytest.raises(ProtocolError, match="number of tensors"):
        chain.check(tensors=post_order([chain.root]))


@pytest.mark.parametrize("device", [1, 2, 2**32 - 1])
def test_device_that_is_not_there(chain: Chain, device: int) -> None:
    with pytest.raises(SessionError, match=f"device {device} of 1"):
        chain.check(device=device)


def test_memory_of_another_device(chain: Chain) -> None:
    with pytest.raises(GraphError, match=r"'sum'.*lies on device"):
        chain.check(device=1, devices=2)


# ---- Ids ----


def test_id_zero(chain: Chain) -> None:
    chain.x.id = 0
    with pytest.raises(GraphError, match=r"'x'.*id 0"):
        chain.check()


def test_id_twice(chain: Chain) -> None:
    chain.y.id = chain.x.id
    with pytest.raises(GraphError, match=r"'y'.*twice"):
        chain.check()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("value", [0, 1, 2**64 - 1])
def test_node_that_is_not_listed(chain: Chain, index: int, value: int) -> None:
    payload = bytearray(chain.payload())
    at = len(payload) - 4 * chain.dialect.record.size - 4 - 8 * (2 - index)
    struct.pack_into("<Q", payload, at, value)
    with pytest.raises(GraphError, match=f"node {index} is not in the tensor list"):
        chain.check(bytes(payload))


def test_nodes_in_wrong_order(chain: Chain) -> None:
    chain.nodes.reverse()
    with pytest.raises(GraphError, match=r"'sum'.*must run earlier"):
        chain.check(tensors=post_order([chain.root]))


def test_node_twice(chain: Chain) -> None:
    chain.nodes = [chain.sum, chain.sum]
    with pytest.raises(GraphError, match=r"'sum'.*must run earlier"):
        chain.check(tensors=post_order([chain.root]))


def test_hash_of_ids_bears_patterns(chain: Chain) -> None:
    """Ids that differ in a few high or low bits only, as many as a graph may have in one place."""
    for shift in (0, 3, 12, 20, 40, 46):
        many = []
        for i in range(4000):
            t = Tensor(
                0, [64, 4, 1, 1], default_strides(0, [64, 4, 1, 1]), chain.arena.handle, chain.x.data, name=f"t{i}"
            )
            t.id = (i + 1) << shift & (2**64 - 1)
            many.append(t)
        checked = chain.check(tensors=[*many, *post_order([chain.root])])
        assert len(checked.tensors) == 4004


# ---- References ----


def test_source_that_is_not_listed(chain: Chain) -> None:
    with pytest.raises(GraphError, match=r"'sum'.*source 1 is not among the tensors before it"):
        chain.check(tensors=[chain.x, chain.sum, chain.root])


def test_source_that_comes_later(chain: Chain) -> None:
    with pytest.raises(GraphError, match=r"'root'.*source 0 is not among the tensors before it"):
        chain.check(tensors=[chain.x, chain.y, chain.root, chain.sum])


def test_cycle(chain: Chain) -> None:
    chain.sum.src[1] = chain.root
    with pytest.raises(GraphError, match=r"'sum'.*source 1 is not among the tensors before it"):
        chain.check(tensors=[chain.x, chain.y, chain.sum, chain.root])


@pytest.mark.parametrize("op", ["ADD", "SQRT", "SET_ROWS", "DUP"])
def test_tensor_that_is_its_own_source(chain: Chain, op: str) -> None:
    chain.sum.op = OP_BY_NAME[op].id
    for slot in range(2):
        chain.sum.src = [chain.x, chain.y]
        chain.sum.src[slot] = chain.sum
        with pytest.raises(GraphError, match=f"'sum'.*source {slot} is the tensor itself"):
            chain.check(tensors=[chain.x, chain.y, chain.sum, chain.root])


def test_only_the_destination_of_a_copy_is_itself(chain: Chain) -> None:
    chain.sum.op = OP_BY_NAME["CPY"].id
    chain.sum.src = [chain.x, chain.sum]
    checked = chain.check(tensors=[chain.x, chain.y, chain.sum, chain.root])
    assert checked.tensors[2].src == (0, 2)
    chain.sum.src = [chain.sum, chain.x]
    with pytest.raises(GraphError, match=r"'sum'.*source 0 is the tensor itself"):
        chain.check(tensors=[chain.x, chain.y, chain.sum, chain.root])


def test_tensor_that_views_itself(chain: Chain) -> None:
    chain.sum.view_src = chain.sum
    with pytest.raises(GraphError, match=r"'sum'.*view_src is not among the tensors before it"):
        chain.check(tensors=[chain.x, chain.y, chain.sum, chain.root])


# ---- Views ----


def viewed(chain: Chain, change: Callable[[Tensor], None] | None = None) -> CheckedGraph:
    """Check sqrt of the last two rows of x, the view changed before."""
    part = view(chain.x, "VIEW", [64, 2, 1, 1], list(chain.x.nb), offset=512, name="part")
    if change is not None:
        change(part)
    chain.root.src, chain.root.ne = [part], [64, 2, 1, 1]
    chain.root.nb = default_strides(chain.root.type, chain.root.ne)
    chain.nodes = [part, chain.root]
    return chain.check()


def test_view_is_not_run(chain: Chain) -> None:
    checked = viewed(chain)
    assert [checked.tensors[i].name for i in checked.nodes] == ["root"]
    part = next(t for t in checked.tensors if t.name == "part")
    assert part.offset == chain.x.data + 512 - chain.arena.base


def _set(**fields: object) -> Callable[[Tensor], None]:
    def change(t: Tensor) -> None:
        for name, value in fields.items():
            setattr(t, name, value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set(view_offs=0),
        _set(view_offs=508),
        _set(view_offs=513),
        _set(view_offs=1024),
        _set(view_offs=2**64 - 512),
        lambda t: _set(data=t.data + 4)(t),
        lambda t: _set(data=t.data - 4)(t),
        lambda t: _set(data=t.data + 4, view_offs=516)(t),
        lambda t: _set(data=t.data - 512 - 4, view_offs=2**64 - 4)(t),
        _set(ne=[64, 3, 1, 1]),
        _set(ne=[65, 2, 1, 1]),
        _set(nb=[4, 516, 1024, 1024]),
    ],
)
def test_view_that_leaves_what_it_views(chain: Chain, change: Callable[[Tensor], None]) -> None:
    with pytest.raises(RpcError, match=r"'part'.*leaves 'x'"):
        viewed(chain, change)


def test_view_without_memory_is_legal_until_it_is_read(chain: Chain) -> None:
    elsewhere = Tensor(0, [64, 4, 1, 1], list(chain.x.nb), name="elsewhere")
    part = view(elsewhere, "RESHAPE", [64, 4, 1, 1], list(chain.x.nb), name="part")
    chain.nodes = [part, chain.root]
    checked = chain.check()
    assert [t.buffer for t in checked.tensors if t.name in ("part", "elsewhere")] == [0, 0]
    chain.root.src = [part]
    with pytest.raises(GraphError, match=r"'root'.*touches 'part', which is in no buffer of this session"):
        chain.check()


def test_foreign_handle_is_no_buffer_whatever_its_address(chain: Chain) -> None:
    chain.x.buffer = chain.arena.handle + 1
    with pytest.raises(GraphError, match=r"'sum'.*touches 'x', which is in no buffer of this session"):
        chain.check()
    chain.nodes = [view(chain.x, "VIEW", [4, 1, 1, 1], list(chain.x.nb))]
    checked = chain.check()
    assert all(t.buffer == 0 for t in checked.tensors)


# ---- What is run ----


def test_node_without_the_flag_is_not_run(chain: Chain) -> None:
    chain.sum.flags &= ~TensorFlag.COMPUTE
    checked = chain.check()
    assert [checked.tensors[i].name for i in checked.nodes] == ["root"]


def test_leaf_of_any_op_is_not_run(chain: Chain) -> None:
    """A tensor that is listed but no node is another graph's result: its own sources do not matter here."""
    chain.nodes = [chain.root]
    chain.sum.src[1] = None
    assert len(chain.check().nodes) == 1
    chain.nodes = [chain.sum, chain.root]
    with pytest.raises(GraphError, match=r"'sum'.*ADD lacks source 1"):
        chain.check()


def test_rows_without_values_are_not_run(chain: Chain) -> None:
    a: Arena = chain.arena
    values, ids, cache = a.leaf("F32", (64, 0), "values"), a.leaf("I64", (0,), "ids"), a.leaf("F16", (64, 8), "cache")
    node = a.node("SET_ROWS", "F16", (64, 8), [values, ids, cache], name="set")
    node.data, node.view_src = cache.data, cache
    chain.nodes = [node, chain.sum]
    checked = chain.check()
    assert [checked.tensors[i].name for i in checked.nodes] == ["sum"]


def test_uid_is_kept() -> None:
    chain = Chain(dialects.find("8.0"))
    assert chain.check(uid=2**63 + 5).uid == 2**63 + 5
    assert Chain(dialects.find("7.0")).check().uid == 0


def test_name_of_a_tensor_is_made_printable(chain: Chain) -> None:
    payload = chain.payload()
    at = len(payload) - chain.dialect.record.size
    record = payload[at:]
    name_at = chain.dialect.record.offsets["name"]
    bad = b"\x1b[31m\xff\n%s%n"
    record = record[:name_at] + bad.ljust(64, b"A") + record[name_at + 64 :]
    checked = chain.check(payload[:at] + record)
    assert checked.tensors[3].name == "?[31m??%s%n" + "A" * (63 - len(bad))
    record = patch(chain.dialect, record, "type", 4)
    with pytest.raises(ProtocolError, match=r"tensor '\?\[31m\?\?%s%nA+': type 4"):
        chain.check(payload[:at] + record)


# ---- Amounts ----


def test_source_that_pretends_to_be_endless(chain: Chain) -> None:
    """Strides of zero show little memory as much; no real client repeats anything so often."""
    row = chain.arena.leaf("F32", (64,), "row")
    row.ne, row.nb = [64, 2**20, 2**20, 1], [4, 0, 0, 0]
    total = chain.arena.node("SUM", "F32", (1,), [row], name="total")
    chain.nodes = [total]
    with pytest.raises(GraphError, match=r"'total'.*repeats its memory"):
        chain.check()
    row.ne = [64, 2**10, 2**10, 1]
    assert chain.check().nodes


def test_product_that_takes_for_ever(chain: Chain) -> None:
    a: Arena = Arena(7, 1 << 32, 1 << 45)
    big = a.leaf("F32", (2**22, 2**10), "big")
    x = a.leaf("F32", (2**22, 2**19), "x")
    product = a.node("MUL_MAT", "F32", (2**10, 2**19), [big, x], name="product")
    buffers = [(a.handle, a.base, a.size)]
    with pytest.raises(GraphError, match=r"'product'.*2\^50 operations"):
        check_graph(chain.codec, graph_payload(chain.dialect, [product]), buffers)
    x.ne[1] = product.ne[1] = 2**18
    assert check_graph(chain.codec, graph_payload(chain.dialect, [product]), buffers).nodes
