"""The dialect tables against facts recorded from released builds."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.spec import dialects, limits
from ggml_rpc.spec.commands import Command, ReplyKind
from ggml_rpc.spec.dialects.base import DEAD, derive, insert_ops, op_table, type_table, without
from ggml_rpc.spec.enums import GluKind, UnaryKind
from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.spec.types import TYPE_BY_ID

DATA = Path(__file__).parent / "data"
WIRE_KINDS = {"u8": 1, "u32": 4, "i32": 4, "u64": 8, "char": 1}


CONSTANTS = json.loads((DATA / "constants.json").read_text())
RECORDED: dict[str, dict[str, Any]] = json.loads((DATA / "dialects.json").read_text())
# Types that a table of numbers has and no client ever sends: backends make them for themselves, or nothing multiplies
# by them. To the server their numbers are dead.
NEVER_SENT = {"Q8_0_X4", "Q8_1_X4", "Q8_2_X4", "Q8_K64", "Q8_K16", "Q8_K32", "Q8_KR8", "Q8_K128"}
NEVER_SENT |= {"Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "I2_S"}
# ik_llama.cpp's name -> ours, where ours tells apart what only the name has in common.
OUR_NAME = {"SSM_CONV": "IK_SSM_CONV", "SSM_SCAN": "IK_SSM_SCAN", "Q1_0_G128": "Q1_0"}


class Facts:
    """The recorded facts of one dialect; a value may stand at the dialect that it is the same as."""

    def __init__(self, dialect: dialects.Dialect) -> None:
        self.name = next(n for n in (dialect.name, *dialect.aliases) if n in RECORDED)
        self.is_ik = dialect.ik_meaning

    def __getitem__(self, key: str) -> Any:
        value = RECORDED[self.name][key]
        while isinstance(value, dict) and "same_as" in value:
            value = RECORDED[value["same_as"]][key]
        return value

    def our_name(self, name: str) -> str:
        return OUR_NAME.get(name, name) if self.is_ik else name


def facts(dialect: dialects.Dialect) -> Facts:
    return Facts(dialect)


@pytest.fixture(params=dialects.DIALECTS, ids=lambda d: d.name)
def dialect(request: pytest.FixtureRequest) -> dialects.Dialect:
    found: dialects.Dialect = request.param
    return found


def test_hello_and_announcement(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    assert list(dialect.announce) == f["announce"]
    assert dialect.hello_request == f["hello_request_bytes"]
    assert dialect.hello_reply == f["hello_response_bytes"]
    assert dialect.reply_size(Command.HELLO) == dialect.hello_reply
    assert dialect.request_size(Command.HELLO) == dialect.hello_request


def test_commands(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    assert {c.name: n for c, n in dialect.commands.items()} == f["commands"]
    assert dialect.command_limit == f["command_limit"]
    assert max(dialect.commands.values()) < dialect.command_limit


def test_request_sizes(dialect: dialects.Dialect) -> None:
    for name, size in facts(dialect)["requests"].items():
        assert dialect.request_size(Command[name]) == (None if size == "variable" else size), name


def test_reply_kinds_and_sizes(dialect: dialects.Dialect) -> None:
    for name, size in facts(dialect)["replies"].items():
        command = Command[name]
        kind = dialect.reply_kind(command)
        if size is None:
            assert kind is ReplyKind.NONE, name
        elif size == 0:
            assert kind is ReplyKind.EMPTY, name
        elif isinstance(size, str):
            assert kind is ReplyKind.SIZED, name
        else:
            assert kind is ReplyKind.FIXED, name
            assert dialect.reply_size(command) == size, name


def test_record_layout(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    record = dialect.record
    assert record.size == f["rpc_tensor_bytes"] == struct.calcsize(record.struct_format)
    assert record.max_src == f["max_src"]
    last = "use_count" if record.has_use_count else "padding"
    assert f["rpc_tensor_fields"][-1][0] == last
    theirs = {n if n != last else "use_count": o for n, o, _, _ in f["rpc_tensor_fields"]}
    assert theirs == {n: o for n, o in record.offsets.items() if n != "end"}
    for name, offset, kind, count in f["rpc_tensor_fields"]:
        assert offset + WIRE_KINDS[kind] * count in record.offsets.values(), name


@pytest.mark.parametrize(
    ("key", "command", "tail"),
    [
        ("set_tensor_header", Command.SET_TENSOR, "data"),
        ("graph_compute_header", Command.GRAPH_COMPUTE, "graph"),
        ("graph_recompute", Command.GRAPH_RECOMPUTE, None),
    ],
)
def test_headers(dialect: dialects.Dialect, key: str, command: Command, tail: str | None) -> None:
    if command not in dialect.commands:
        assert key not in RECORDED[facts(dialect).name]
        return
    fields = [(f.name, f.offset) for f in dialect.request_fields(command) if f.name != tail]
    assert fields == [(name, offset) for name, offset, _, _ in facts(dialect)[key]]


def test_rules(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    assert dialect.alloc_size_has_srcs == f["alloc_size_has_srcs"]
    assert dialect.compute_flag == f["compute_flag"]
    assert dialect.graph_cache.value == f["graph_cache"]
    assert dialect.hash_cache_rule.name == {"cache_flag": "FLAG"}.get(f["hash_cache_rule"], "SIZE")


def test_op_numbers(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    assert [OP_BY_ID[i].name for i in dialect.ops] == [f.our_name(name) for name in f["ops"]]
    assert len(dialect.op_numbers) == len(dialect.ops)


def test_unary_and_glu_numbers(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    assert [UnaryKind(i).name for i in dialect.unary] == f["unary"]
    assert [GluKind(i).name for i in dialect.glu] == f["glu"]


def test_type_numbers_and_sizes(dialect: dialects.Dialect) -> None:
    f = facts(dialect)
    assert len(dialect.types) <= f["type_count"]
    assert all(t[0] < len(dialect.types) for name, t in f["types"].items() if name not in NEVER_SENT)
    ours = {}
    for number, internal in enumerate(dialect.types):
        if internal != DEAD:
            t = TYPE_BY_ID[internal]
            ours[t.name] = [number, t.block, t.bytes, t.is_quantized, t.row_meta]
    dead = NEVER_SENT | ({"Q8_K"} if f.is_ik else set())
    assert ours == {f.our_name(name): t for name, t in f["types"].items() if name not in dead}


def test_enum_values(dialect: dialects.Dialect) -> None:
    f = facts(dialect)["enums"]
    for ours, theirs in {
        "prec": "prec",
        "pool": "pool",
        "sort_order": "sort_order",
        "scale_mode": "scale_mode",
        "tri": "tri_type",
        "op_hint": "op_hint",
    }.items():
        if theirs in f:
            assert set(dialect.enums[ours]) == set(f[theirs].values()), ours


def test_8_0_internal_numbers_are_the_wire_numbers() -> None:
    d = dialects.find("8.0.0")
    assert list(d.ops) == list(range(len(d.ops)))
    assert list(d.unary) == list(range(len(d.unary)))
    assert list(d.glu) == list(range(len(d.glu)))
    assert all(internal in (wire, DEAD) for wire, internal in enumerate(d.types))
    assert all(number == command for command, number in d.commands.items())


def test_protocol_constants() -> None:
    c = CONSTANTS
    assert c["default_port"] == limits.DEFAULT_PORT
    assert c["hash_threshold_bytes"] == limits.HASH_THRESHOLD_BYTES
    assert c["conn_caps_bytes"] == limits.CONN_CAPS_BYTES
    assert c["max_dims"] == limits.MAX_DIMS
    assert c["max_name"] == limits.MAX_NAME
    assert c["op_params_bytes"] == limits.OP_PARAMS_BYTES
    assert c["graph_cache_max"] == limits.GRAPH_CACHE_MAX
    assert c["comm_port_offset"] == limits.COMM_PORT_OFFSET
    assert c["allreduce_bf16_min_elements"] == limits.ALLREDUCE_BF16_MIN_ELEMENTS


def test_registry_finds_names_and_aliases() -> None:
    seen: set[str] = set()
    for d in dialects.DIALECTS:
        for name in (d.name, *d.aliases):
            assert name not in seen, f"{name} names two dialects"
            seen.add(name)
            assert dialects.find(name) is d
    with pytest.raises(KeyError, match=r"8\.0\.0"):
        dialects.find("9.0")


def test_derive_demands_a_name() -> None:
    with pytest.raises(ValueError, match="aliases"):
        derive(dialects.DEFAULT, name="x", announce=(1, 0, 0))


def test_table_helpers_move_later_numbers() -> None:
    table = op_table(["NONE", "ADD", "MUL_MAT", "GLU"])
    short = without(table, table[1])
    assert [OP_BY_ID[i].name for i in short] == ["NONE", "MUL_MAT", "GLU"]
    assert insert_ops(short, 1, "ADD") == table
    with pytest.raises(ValueError, match="not in the table"):
        without(short, table[1])
    assert type_table({0: "F32", 2: "Q4_0"}, 3) == (0, DEAD, 2)
