"""What must be stated twice, in Python and in C++, is stated alike; the spec tables leave nothing out."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import ggml_rpc
from ggml_rpc import errors
from ggml_rpc.spec.commands import REQUEST_FIELDS, Command, ReplyKind
from ggml_rpc.spec.dialects import DEAD, DIALECTS, Dialect
from ggml_rpc.spec.ops import OP_BY_ID
from ggml_rpc.spec.types import TYPE_BY_ID

ROOT = Path(__file__).resolve().parents[2]


def enumerators(header: str, name: str) -> dict[str, int]:
    """Return the enumerators with a value or without, in order, of an enum of a header."""
    text = (ROOT / "csrc" / header).read_text(encoding="utf-8")
    body = re.search(rf"enum (?:class )?{name} : int32_t \{{(.*?)\}};", text, re.DOTALL)
    assert body is not None
    out: dict[str, int] = {}
    for row in re.sub(r"//.*", "", body[1]).split(","):
        if row.strip():
            key, _, value = (part.strip() for part in row.partition("="))
            out[key] = int(value) if value else len(out)
    return out


def test_every_native_status_has_an_exception() -> None:
    codes = enumerators("core/status.h", "Code")
    assert codes.pop("ok") == 0
    for name, number in codes.items():
        raised = errors.from_code(number, "text")
        assert type(raised) is not errors.RpcError, f"{name} has no exception of its own"
        assert str(raised) == "text"


def test_native_commands_are_those_of_the_spec() -> None:
    native = {key.removeprefix("CMD_"): value for key, value in enumerators("wire/dialect.h", "Command").items()}
    assert native.pop("COUNT_") == len(Command)
    assert native == {command.name: int(command) for command in Command}
    records = (ROOT / "csrc" / "wire" / "records.cpp").read_text(encoding="utf-8")
    named = records.split("COMMAND_NAMES", 1)[1].split("};", 1)[0]
    assert re.findall(r'"(\w+)"', named) == [command.name for command in Command]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_dialect_names_only_what_has_a_row(dialect: Dialect) -> None:
    assert set(dialect.ops) <= set(OP_BY_ID)
    assert {number for number in dialect.types if number != DEAD} <= set(TYPE_BY_ID)
    for command in dialect.commands:
        assert dialect.request_fields(command) is not None
        if dialect.reply_kind(command) is ReplyKind.FIXED:
            assert dialect.reply_fields(command)


def test_every_command_has_fields() -> None:
    built = {Command.HELLO, Command.SET_TENSOR, Command.GET_ALLOC_SIZE, Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE}
    assert set(REQUEST_FIELDS) | built == set(Command)


STUBS = sorted((ROOT / "ggml_rpc").rglob("*.pyi"))


def test_every_native_module_has_a_stub() -> None:
    assert [p.with_suffix("") for p in STUBS] == sorted(p.with_suffix("") for p in (ROOT / "ggml_rpc").rglob("*.pyx"))


@pytest.mark.parametrize("path", STUBS, ids=lambda p: p.name)
def test_stub_names_what_is_there(path: Path) -> None:
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            assert callable(getattr(module, node.name))
        if isinstance(node, ast.ClassDef):
            native = getattr(module, node.name)
            if issubclass(native, tuple):  # plain Python inside the module
                fields = [
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                ]
                assert fields == list(native._fields)
                continue
            named = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            public = {
                name for name, value in vars(native).items() if not name.startswith("_") and not isinstance(value, int)
            }
            fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
            assert public - fields == {name for name in named if not name.startswith("__")}, node.name


def test_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:(?:a|b|rc|\.dev)\d+)?", ggml_rpc.__version__)
    for path in ("pyproject.toml", "CMakeLists.txt"):
        assert ggml_rpc.__version__ not in (ROOT / path).read_text(encoding="utf-8")
