"""GGUF files: what the `gguf` package writes is read back; what is damaged is refused in one line."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggml_rpc.errors import ModelError
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.gguf_header import parse_header
from ggml_rpc.spec.types import TYPE_BY_NAME, TYPES

TOKENS = ["<s>", "a", "▁the", "", "日本", "\n", "\x00"]
WEIGHTS = {
    "token_embd.weight": np.arange(7 * 32, dtype=np.float32).reshape(7, 32),
    "blk.0.attn_q.weight": np.linspace(-1, 1, 64 * 32, dtype=np.float32).reshape(64, 32).astype(np.float16),
    "blk.0.norm.weight": np.ones(32, np.float32),
    "blk.0.experts": np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5),
}


def write(path: Path, *, alignment: int | None = None, split: int = 0) -> list[Path]:
    """Write a small model with the `gguf` package and return its files."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split)
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_add_bos_token(True)
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.5 * i for i in range(len(TOKENS))])
    writer.add_token_types([1] * len(TOKENS))
    writer.add_array("llama.flags", [True, False, True])
    writer.add_int64("llama.deep", -(2**40))
    writer.add_float32("llama.not_finite", float("nan"))
    writer.add_array("llama.attention.head_count_kv", [4, 2])
    for name, weight in WEIGHTS.items():
        writer.add_tensor(name, weight)
    codes = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", codes, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(path.stem + "*.gguf"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small.gguf")[0]


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def header(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    data: int = 64,
) -> bytes:
    """Return a file written by hand, padded, with `data` bytes of tensors."""
    keys, tensors = keys or [], tensors or []
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    raw = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return raw + bytes(-len(raw) % 32) + bytes(data)


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def info(name: str = "t", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims))
        + b"".join(struct.pack("<Q", d) for d in dims)
        + struct.pack("<IQ", kind, offset)
    )


def test_what_the_package_wrote(small: Path) -> None:
    with GgufFile.open(small) as model:
        assert model.architecture == "llama"
        assert model.get_int("{arch}.block_count") == 1
        assert model.get_int("llama.deep", minimum=-(2**63)) == -(2**40)
        assert model.get_float("{arch}.rope.freq_base") == 10000.0
        assert model.get_bool("tokenizer.ggml.add_bos_token") is True
        assert model.get_strings("tokenizer.ggml.tokens") == TOKENS
        scores = model.get_array("tokenizer.ggml.scores", kind="float")
        np.testing.assert_array_equal(scores, np.arange(len(TOKENS), dtype=np.float32) / 2)
        assert not scores.flags.writeable
        assert model.get_array("{arch}.flags").tolist() == [True, False, True]
        assert model.get_ints("{arch}.attention.head_count_kv", 2) == (4, 2)
        assert model.get_ints("{arch}.block_count", 3) == (1, 1, 1)
        assert list(model.tensors) == [*WEIGHTS, "blk.0.ffn_up.weight"]
        for name, weight in WEIGHTS.items():
            tensor = model.require(name, weight.shape)
            assert tensor.shape == weight.shape
            assert tensor.ne == (*weight.shape[::-1], 1, 1, 1)[:4]
            assert tensor.nbytes == weight.nbytes
            np.testing.assert_array_equal(tensor.data.view(weight.dtype).reshape(weight.shape), weight)
        up = model.require("blk.0.ffn_up.weight", (4, 64))
        assert (up.type, up.nbytes, up.spec) == ("Q8_0", 4 * 68, TYPE_BY_NAME["Q8_0"])
        raw = small.read_bytes()[up.file_offset : up.file_offset + up.nbytes]
        assert up.data.tobytes() == raw


def test_data_is_a_view_of_the_file_and_outlives_it(small: Path) -> None:
    model = GgufFile.open(small)
    tensor = model.tensors["token_embd.weight"]
    data = tensor.data
    assert not data.flags.writeable
    assert not data.flags.owndata
    assert np.shares_memory(data, tensor.data)
    model.close()
    model.close()
    np.testing.assert_array_equal(data.view(np.float32), WEIGHTS["token_embd.weight"].ravel())
    with pytest.raises(ModelError, match="closed"):
        _ = tensor.data


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_close_releases_the_map(small: Path) -> None:
    model = GgufFile.open(small)
    data = model.tensors["token_embd.weight"].data
    assert mapped(small)
    model.close()
    assert mapped(small)
    del data
    assert not mapped(small)
    with GgufFile.open(small):
        assert mapped(small)
    assert not mapped(small)
    small.write_bytes(small.read_bytes()[:-300])
    with pytest.raises(ModelError):
        GgufFile.open(small)
    assert not mapped(small)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    with GgufFile.open(write(tmp_path / "aligned.gguf", alignment=alignment)[0]) as model:
        assert all(t.file_offset % alignment == 0 for t in model.tensors.values())
        np.testing.assert_array_equal(model.tensors["blk.0.norm.weight"].data.view(np.float32), np.ones(32))


@pytest.mark.parametrize("spec", TYPES, ids=lambda t: t.name)
def test_every_type_is_known_by_its_number(spec: Any) -> None:
    dims = (2 * spec.block, spec.row_group)
    size = spec.row_bytes(dims[0]) * dims[1]
    found = parse_header(header(tensors=[info(dims=dims, kind=spec.id)], data=size), "x").tensors[0]
    assert (found.type, found.nbytes) == (spec, size)
    with pytest.raises(ModelError, match="incomplete"):
        parse_header(header(tensors=[info(dims=dims, kind=spec.id)], data=size - 1), "x")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (0, b"\xff", 255),
        (1, b"\xff", -1),
        (2, b"\xff\xff", 65535),
        (3, b"\xff\xff", -1),
        (4, b"\xff" * 4, 2**32 - 1),
        (5, b"\xff" * 4, -1),
        (6, struct.pack("<f", 0.5), 0.5),
        (7, b"\x02", True),
        (7, b"\x00", False),
        (8, text("é"), "é"),
        (10, b"\xff" * 8, 2**64 - 1),
        (11, b"\xff" * 8, -1),
        (12, struct.pack("<d", 0.1), 0.1),
        (9, struct.pack("<IQ", 8, 0), []),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value(version: int, kind: int, value: bytes, expected: object) -> None:
    found = parse_header(header(version=version, keys=[key("k", kind, value)]), "x").metadata["k"]
    assert found == expected
    assert type(found) is type(expected)


def test_an_empty_array_at_the_end() -> None:
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key("k", 9, struct.pack("<IQ", 6, 0))
    found = parse_header(raw, "x").metadata["k"]
    assert isinstance(found, np.ndarray)
    assert found.shape == (0,)


HUGE = 2**64 - 1
U32 = struct.pack("<I", 32)

DAMAGED: dict[str, tuple[bytes, str]] = {
    "magic": (header(magic=b"GGML"), "no GGUF file"),
    "version 1": (header(version=1), "version 1"),
    "version 4": (header(version=4), "version 4"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "only a magic": (b"GGUF", "incomplete"),
    "key count": (header(n_keys=HUGE), "header has|incomplete"),
    "tensor count": (header(n_tensors=HUGE), "header has|incomplete"),
    "one key too many": (header(n_keys=2**16 + 1), "65,537 keys; at most 65,536"),
    "one tensor too many": (header(n_tensors=2**17 + 1), "131,073 tensors; at most 131,072"),
    "long key": (header(keys=[key("k" * 60000, 13, bytes(8))]), r"'kkk.*\.\.\.$"),
    "long key twice": (header(keys=[key("k" * 60000, 4, U32)] * 2), r"kkk\.\.\. twice"),
    "long alignment": (header(keys=[key("general.alignment", 8, text("\x1b" * 60000))]), "no power of two"),
    "key length": (header(keys=[struct.pack("<Q", HUGE)]), "at most 65,535"),
    "text length": (header(keys=[key("k", 8, struct.pack("<Q", 2**40))]), "at most"),
    "text beyond the end": (header(keys=[key("k", 8, struct.pack("<Q", 4096))]), "would end beyond"),
    "number count": (header(keys=[key("k", 9, struct.pack("<IQ", 6, HUGE))]), "incomplete"),
    "string count": (header(keys=[key("k", 9, struct.pack("<IQ", 8, HUGE))]), "texts up to 'k'; at most 4,194,304"),
    "strings of two keys": (
        header(keys=[key("k", 9, struct.pack("<IQQ", 8, 1, 0)), key("l", 9, struct.pack("<IQ", 8, 2**22))]),
        "4,194,305 texts up to 'l'",
    ),
    "strings beyond the end": (header(keys=[key("k", 9, struct.pack("<IQ", 8, 2**22))]), "incomplete"),
    "string length": (header(keys=[key("k", 9, struct.pack("<IQQ", 8, 1, HUGE))]), "incomplete"),
    "nested array": (header(keys=[key("k", 9, struct.pack("<IQ", 9, 1))]), "type 9"),
    "value type": (header(keys=[key("k", 13, bytes(8))]), "type 13"),
    "empty key": (header(keys=[key("", 4, U32)]), "empty key"),
    "key twice": (header(keys=[key("k", 4, U32)] * 2), "'k' twice"),
    "key not UTF-8": (header(keys=[struct.pack("<Q", 1) + b"\xff" + struct.pack("<I", 4) + U32]), "UTF-8"),
    "text not UTF-8": (header(keys=[key("k", 8, struct.pack("<Q", 1) + b"\xff")]), "UTF-8"),
    "string not UTF-8": (header(keys=[key("k", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff")]), "number 0 of 'k'"),
    "alignment 0": (header(keys=[key("general.alignment", 4, bytes(4))]), "alignment 0"),
    "alignment 48": (header(keys=[key("general.alignment", 4, struct.pack("<I", 48))]), "alignment 48"),
    "alignment text": (header(keys=[key("general.alignment", 8, text("32"))]), "alignment '32'"),
    "tensor twice": (header(tensors=[info(), info(offset=32)]), "'t' twice"),
    "long name": (header(tensors=[info("t" * 64)]), "at most 63"),
    "five dimensions": (header(tensors=[info(dims=(1,) * 5)]), "5 dimensions"),
    "dimension count": (header(tensors=[info(dims=())[:-16] + struct.pack("<I", 2**31)]), "dimensions"),
    "no elements": (header(tensors=[info(dims=(8, 0))]), "no elements"),
    "huge dimension": (header(tensors=[info(dims=(HUGE,))]), "alone needs"),
    "product wraps": (header(tensors=[info(dims=(2**32, 2**32))]), "alone needs"),
    "unknown type": (header(tensors=[info(kind=4)]), "type 4"),
    "type number": (header(tensors=[info(kind=2**32 - 1)]), "not known"),
    "half a block": (header(tensors=[info(dims=(48,), kind=8)], data=102), "blocks of 32"),
    "half a group": (header(tensors=[info(dims=(32, 7), kind=208)], data=512), "groups of 8 rows"),
    "offset": (header(tensors=[info(offset=96)]), "ends at byte"),
    "offset wraps": (header(tensors=[info(offset=2**64 - 32)]), "ends at byte"),
    "odd offset": (header(tensors=[info(offset=4)]), "no multiple of 32"),
    "overlap": (header(tensors=[info(dims=(16,)), info("u", offset=32)]), "same place"),
    "same place": (header(tensors=[info(), info("u")]), "same place"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(tmp_path: Path, case: str) -> None:
    raw, words = DAMAGED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=words) as caught:
        GgufFile.open(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 300


def test_the_damaged_files_are_sound_but_for_their_damage() -> None:
    """Control."""
    raw = header(keys=[key("general.alignment", 4, U32)], tensors=[info(), info("u", offset=32)])
    assert [t.name for t in parse_header(raw, "x").tensors] == ["t", "u"]


def test_control_characters_do_not_reach_the_terminal() -> None:
    with pytest.raises(ModelError) as caught:
        parse_header(header(tensors=[info("\x1b[2J\n", kind=4)]), "x")
    assert str(caught.value).isprintable()


def test_a_header_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggml_rpc.llm.gguf_header.MAX_HEADER", 4096)
    raw = header(keys=[key("k", 9, struct.pack("<IQ", 8, 10000) + bytes(80000))])
    with pytest.raises(ModelError, match="more than 4,096 bytes"):
        parse_header(raw, "x")
    assert parse_header(header(tensors=[info(dims=(10000,))], data=40000), "x").tensors[0].nbytes == 40000


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "No such file"),
        (lambda p: p.mkdir(), "no regular file"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (os.mkfifo, "no regular file"),
    ],
    ids=["missing", "folder", "empty", "pipe"],
)
def test_no_file(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(ModelError, match=words):
        GgufFile.open(path)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        GgufFile.open("a\0b.gguf")


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda m: m.get_int("llama.context_length"), "has no 'llama.context_length'"),
        (lambda m: m.get_int("{arch}.context_length"), "has no 'llama.context_length'"),
        (lambda m: m.get_int("llama.rope.freq_base"), "a whole number, but is 10000.0"),
        (lambda m: m.get_int("tokenizer.ggml.add_bos_token"), "a whole number, but is True"),
        (lambda m: m.get_int("llama.deep"), "only 0 to 2147483647"),
        (lambda m: m.get_int("llama.block_count", minimum=2), "is 1, but only 2"),
        (lambda m: m.get_ints("llama.attention.head_count_kv", 3), "array of 3 whole numbers, but is an array of 2"),
        (lambda m: m.get_ints("llama.attention.head_count_kv", 2, maximum=3), "holds 4"),
        (lambda m: m.get_ints("tokenizer.ggml.scores", len(TOKENS)), "array of 7 whole numbers"),
        (lambda m: m.get_ints("tokenizer.ggml.tokens", 7), "array of 7 texts"),
        (lambda m: m.get_float("general.architecture"), "a finite number, but is 'llama'"),
        (lambda m: m.get_float("llama.not_finite"), "but is nan"),
        (lambda m: m.get_bool("llama.block_count"), "true or false, but is 1"),
        (lambda m: m.get_str("llama.block_count"), "a text, but is 1"),
        (lambda m: m.get_strings("tokenizer.ggml.scores"), "texts, but is an array of 7 float32"),
        (lambda m: m.get_array("tokenizer.ggml.tokens"), "numbers, but is an array of 7 texts"),
        (lambda m: m.get_array("tokenizer.ggml.scores", kind="int"), "array of whole numbers"),
        (lambda m: m.get_array("tokenizer.ggml.token_type", kind="float"), "array of floating-point numbers"),
        (lambda m: m.require("output.weight", (7, 32)), r"no tensor 'output.weight' \(shape \(7, 32\)\)"),
        (lambda m: m.require("token_embd.weight", (32, 7)), r"shape \(7, 32\), .* ask for \(32, 7\)"),
        (lambda m: m.optional("token_embd.weight", (7,)), r"ask for \(7,\)"),
        (lambda m: m.optional("token_embd.weight", (2, 1, 1, 7, 32)), "ask for"),
    ],
)
def test_wrong_values_and_tensors(small: Path, read: Callable[[GgufFile], object], words: str) -> None:
    with GgufFile.open(small) as model:
        with pytest.raises(ModelError, match=words) as caught:
            read(model)
        assert str(small) in str(caught.value)


def test_defaults(small: Path) -> None:
    with GgufFile.open(small) as model:
        assert model.get_int("none", 5) == 5
        assert model.get_int("none", None) is None
        assert model.get_ints("none", 2, (1, 2)) == (1, 2)
        assert model.get_float("none", 0.5) == 0.5
        assert model.get_bool("none", False) is False
        assert model.get_str("none", "x") == "x"
        assert model.get_strings("none", None) is None
        assert model.get_array("none", None) is None
        assert model.optional("none", (1,)) is None
        assert model.require("blk.0.norm.weight", (1, 1, 32)).shape == (32,)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    found = write(tmp_path / "big.gguf", split=2)
    assert [p.name for p in found] == [f"big-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    return found


def test_the_first_part_opens_all(parts: list[Path]) -> None:
    with GgufFile.open(parts[0]) as model:
        assert model.paths == tuple(parts)
        assert list(model.tensors) == [*WEIGHTS, "blk.0.ffn_up.weight"]
        assert [t.path for t in model.tensors.values()] == [parts[0]] * 2 + [parts[1]] * 2 + [parts[2]]
        for name, weight in WEIGHTS.items():
            assert model.require(name, weight.shape).data.tobytes() == weight.tobytes()
        assert model.get_strings("tokenizer.ggml.tokens") == TOKENS


def patched(path: Path, name: str, value: int) -> None:
    """Give a number in a file another value."""
    raw = bytearray(path.read_bytes())
    at = raw.index(text(name)) + len(text(name))
    size = {2: 2, 4: 4, 5: 4}[struct.unpack_from("<I", raw, at)[0]]
    raw[at + 4 : at + 4 + size] = value.to_bytes(size, "little")
    path.write_bytes(raw)


def rename(first: Path) -> Path:
    return first.rename(first.with_name("first.gguf"))


def another(first: Path, i: int) -> Path:
    """Return part i + 1 of the same model."""
    return first.with_name(f"big-{i + 1:05}-of-00003.gguf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda first: another(first, 1).unlink(), "big-00002-of-00003.gguf of 3 parts missing"),
        (lambda first: [another(first, i).unlink() for i in (1, 2)], "big-00002-of-00003.gguf and 1 more"),
        (lambda first: another(first, 2).write_bytes(b"GGUF"), "big-00003-of-00003.gguf is incomplete"),
        (lambda first: os.replace(another(first, 1), another(first, 2)) or another(first, 1).mkdir(), "no regular"),
        (lambda first: patched(another(first, 1), "split.no", 2), "says that it is part 3 of 3, not part 2 of 3"),
        (lambda first: patched(another(first, 1), "split.count", 4), "part 2 of 4, not part 2 of 3"),
        (lambda first: patched(first, "split.tensors.count", 6), "promises 6 tensors, but its 3 parts have 5"),
        (lambda first: patched(first, "split.count", 65535), "one of 65535 parts"),
        (lambda first: patched(first, "split.no", 1), "not the first part"),
        (lambda first: another(first, 2).write_bytes(another(first, 1).read_bytes()), "says that it is part 2"),
        (lambda first: another(first, 1).write_bytes(header()), "'split.no' is missing"),
    ],
)
def test_parts_that_do_not_fit(parts: list[Path], change: Callable[[Path], object], words: str) -> None:
    change(parts[0])
    with pytest.raises(ModelError, match=words):
        GgufFile.open(parts[0])


def test_a_later_part_or_another_name(parts: list[Path]) -> None:
    with pytest.raises(ModelError, match=r"not the first part of its model: open .*big-00001-of-00003.gguf"):
        GgufFile.open(parts[1])
    with pytest.raises(ModelError, match="give the files their original names"):
        GgufFile.open(rename(parts[0]))


def test_parts_with_a_tensor_of_the_same_name(parts: list[Path]) -> None:
    raw = parts[1].read_bytes()
    parts[1].write_bytes(raw.replace(b"blk.0.norm.weight", b"token_embd.weight"))
    with pytest.raises(ModelError, match=r"'token_embd.weight', which .*00001-of-00003.gguf has too"):
        GgufFile.open(parts[0])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("fuzz") / "small.gguf")[0].read_bytes()


def parse_or_refuse(raw: bytes) -> None:
    """Parse bytes that may be anything: no other exception, no tensor outside, no memory beyond what they need."""
    tracemalloc.start()
    try:
        tensors, refusal = parse_header(raw, "fuzzed.gguf").tensors, ""
    except ModelError as error:
        tensors, refusal = [], str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert all(t.offset >= 0 and t.offset + t.nbytes <= len(raw) for t in tensors)
    assert not refusal or (refusal.startswith("fuzzed.gguf ") and refusal.isprintable())
    # A string takes 8 bytes of the file at least, and as an object some 60.
    assert peak < 100_000 + 25 * len(raw)


@given(data=st.data())
@settings(max_examples=300)
def test_any_truncation(sound: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(sound) - 1))
    parse_or_refuse(sound[:cut])


@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8), cut=st.booleans()
)
@settings(max_examples=1000)
def test_any_change_of_bytes(sound: bytes, changes: list[tuple[int, int]], cut: bool) -> None:
    raw = bytearray(sound)
    n_header = raw.index(b"blk.0.ffn_up.weight") + 60
    for at, value in changes:
        raw[at % n_header] = value
    parse_or_refuse(bytes(raw[: len(raw) - 64] if cut else raw))


@given(at=st.integers(0, 2**20), value=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**63 - 1, 2**64 - 1]))
@settings(max_examples=1000)
def test_any_number_made_extreme(sound: bytes, at: int, value: int) -> None:
    raw = bytearray(sound)
    at %= raw.index(b"blk.0.ffn_up.weight") + 60
    raw[at : at + 8] = struct.pack("<Q", value)
    parse_or_refuse(bytes(raw))
