"""Model files that are wrong as a whole: each is one line that names what is wrong, or a model that runs."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggml_rpc.errors import ContextError, ModelError, PlacementError, RpcError
from ggml_rpc.llm.devices import DeviceSet, open_devices
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.llm.weights import EMBEDDING, ModelFile

from .models import MODELS, cached, write
from .models.shapes import RandomModel

SMALL = ContextSettings(n_ctx=256, n_batch=32, n_ubatch=16)
SIZES: dict[str, Any] = {"n_embd": 64, "n_ff": 64, "n_head": 2, "n_head_kv": 1, "head_dim": 32, "n_vocab": 96}
EXPERTS: dict[str, Any] = {"n_expert": 4, "n_expert_used": 2}
TINY = {
    "llama": RandomModel("tiny-llama", "llama", n_layer=2, **SIZES),
    "llama-tied": RandomModel("tiny-llama-tied", "llama", n_layer=2, tied=True, **SIZES),
    "llama-factors": RandomModel("tiny-llama-factors", "llama", n_layer=2, factors=("rope_freqs",), **SIZES),
    "qwen2": RandomModel("tiny-qwen2", "qwen2", n_layer=2, **SIZES),
    "qwen3": RandomModel("tiny-qwen3", "qwen3", n_layer=2, **SIZES),
    "qwen3moe": RandomModel(
        "tiny-qwen3moe", "qwen3moe", n_layer=2, **SIZES, **EXPERTS, metadata={"expert_feed_forward_length": 64}
    ),
    "gemma2": RandomModel("tiny-gemma2", "gemma2", n_layer=2, tied=True, **SIZES),
    "gemma3": RandomModel("tiny-gemma3", "gemma3", n_layer=2, tied=True, **SIZES),
    "phi3": RandomModel("tiny-phi3", "phi3", n_layer=2, **{**SIZES, "n_head_kv": 2}),
}


@pytest.fixture(scope="module")
def devices() -> Iterator[DeviceSet]:
    """Return this machine's devices."""
    with open_devices(threads=1) as found:
        yield found


def described(data: bytes, name: str) -> int:
    """Return where a file says how many dimensions a tensor has."""
    entry = struct.pack("<Q", len(name)) + name.encode()
    assert data.count(entry) == 1
    return data.index(entry) + len(entry)


def refusal(path: Path, data: bytes) -> str:
    """Return why a file is not read."""
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught, ExitStack() as stack:
        ModelFile.read(stack.enter_context(GgufFile.open(path)))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("model", TINY)
def test_each_tensor_is_missed(model: str, tmp_path: Path) -> None:
    sound = cached(TINY[model], "F16")
    data = sound.read_bytes()
    with GgufFile.open(sound) as file:
        read = ModelFile.read(file)
        needed = [s.tensor for s in read.specs if not s.optional and s.name != "output.weight"]
        assert len(needed) >= 2 * 6
    for name in needed:
        at = described(data, name)
        text = refusal(tmp_path / "model.gguf", data[: at - 1] + b"_" + data[at:])
        # Without a fused matrix the separate ones are asked for.
        instead = name.replace("attn_qkv", "attn_q")
        assert re.search(rf"no.* tensor '({re.escape(name)}|{re.escape(instead)})'", text), text


@pytest.mark.parametrize("model", TINY)
def test_each_shape_and_type_is_checked(model: str, tmp_path: Path) -> None:
    sound = cached(TINY[model], "F16")
    data = sound.read_bytes()
    with GgufFile.open(sound) as file:
        tensors = [(spec.tensor, file.tensors[spec.tensor].ne) for spec in ModelFile.read(file).specs]
    for name, ne in tensors:
        at = described(data, name)
        (n_dims,) = struct.unpack_from("<I", data, at)
        # Without a vocabulary the table of tokens says how many there are.
        for i in range(1 if name == EMBEDDING else n_dims):
            last = at + 4 + 8 * i
            spoilt = bytearray(data)
            struct.pack_into("<Q", spoilt, last, ne[i] - 1)
            assert f"'{name}'" in refusal(tmp_path / "model.gguf", bytes(spoilt))
        if n_dims == 2 and ne[0] != ne[1]:
            spoilt = bytearray(data)
            struct.pack_into("<2Q", spoilt, at + 4, ne[1], ne[0])
            assert f"'{name}'" in refusal(tmp_path / "model.gguf", bytes(spoilt))
        for kind in (25, 9) if n_dims == 1 else (25,):  # I16; Q8_1, in which vectors cannot be
            spoilt = bytearray(data)
            struct.pack_into("<I", spoilt, at + 4 + 8 * n_dims, kind)
            assert f"'{name}' " in refusal(tmp_path / "model.gguf", bytes(spoilt))


# Bytes in the first block of a matrix that are an infinite or no number in each type.
NOT_FINITE = {
    "F32": (0, struct.pack("<f", float("nan"))),
    "F16": (0, struct.pack("<e", float("inf"))),
    "BF16": (0, b"\xc0\x7f"),
    "Q8_0": (0, struct.pack("<e", float("nan"))),
    "Q4_0": (0, struct.pack("<e", float("inf"))),
    "Q4_1": (2, struct.pack("<e", float("nan"))),
    "Q4_K": (2, struct.pack("<e", float("nan"))),
    "Q6_K": (208, struct.pack("<e", float("-inf"))),
}


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_weights_that_are_no_numbers(kind: str, tmp_path: Path, devices: DeviceSet) -> None:
    path = tmp_path / "model.gguf"
    write(path, MODELS["llama"], kind)
    name = "blk.1.ffn_down.weight"
    with GgufFile.open(path) as file:
        assert file.tensors[name].type == kind
        at = file.tensors[name].file_offset
    offset, number = NOT_FINITE[kind]
    with open(path, "r+b") as out:
        out.seek(at + offset)
        out.write(number)
    with pytest.raises(ModelError, match=rf"tensor '{re.escape(name)}' holds numbers that are NaN") as caught:
        Model.open(path, devices, settings=SMALL)
    assert "\n" not in str(caught.value)


# ---- Anything --------------------------------------------------------------------------------------------------------


def opened(path: Path, devices: DeviceSet) -> None:
    """Open a file and run it for a token: that works, or is refused."""
    try:
        with Model.open(path, devices, settings=SMALL) as model, model.context() as context:
            context.decode([1, 2, 3])
    except (ModelError, ContextError, PlacementError) as e:
        text = str(e)
        if isinstance(e, PlacementError):
            text = text.removesuffix(e.table).rstrip()
    else:
        return
    assert text.isprintable(), text


@pytest.fixture(scope="module")
def headers() -> dict[str, tuple[bytes, int]]:
    """Return files, and where their tensors' data begins."""
    out = {}
    for name, kind in (("llama-factors", "Q8_0"), ("qwen3moe", "Q8_0"), ("gemma3", "Q8_0")):
        path = cached(TINY[name], kind)
        with GgufFile.open(path) as file:
            out[name] = path.read_bytes(), min(t.file_offset for t in file.tensors.values())
    return out


NUMBERS = (0, 1, 3, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.tuples(st.sampled_from(["llama-factors", "qwen3moe", "gemma3"]), st.floats(0, 1, exclude_max=True)),
    change=st.one_of(st.integers(0, 255), st.sampled_from(NUMBERS).map(lambda n: struct.pack("<I", n))),
)
def test_any_change_of_a_header(
    where: tuple[str, float],
    change: int | bytes,
    headers: dict[str, tuple[bytes, int]],
    tmp_path: Path,
    devices: DeviceSet,
) -> None:
    data, n_header = headers[where[0]]
    begin = int(where[1] * n_header)
    new = bytes([change]) if isinstance(change, int) else change
    (tmp_path / "model.gguf").write_bytes(data[:begin] + new + data[begin + len(new) :])
    opened(tmp_path / "model.gguf", devices)


@pytest.mark.parametrize("model", ["llama-factors", "qwen3moe", "gemma3"])
@pytest.mark.parametrize("number", NUMBERS)
def test_every_setting_made_extreme(
    model: str, number: int, headers: dict[str, tuple[bytes, int]], tmp_path: Path, devices: DeviceSet
) -> None:
    data, _ = headers[model]
    path = tmp_path / "model.gguf"
    arch = TINY[model].arch.encode()
    for key in re.finditer(arch + rb"\.[a-z_.]+(?=[\x04\x06]\0\0\0)", data):
        at = key.end() + 4
        for new in (struct.pack("<I", number), struct.pack("<f", float(number))):
            path.write_bytes(data[:at] + new + data[at + 4 :])
            opened(path, devices)


# ---- The command -----------------------------------------------------------------------------------------------------


def as_it_is(data: bytes) -> bytes:
    return data


SPOILT: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...], str]] = {
    "no GGUF": (lambda data: b"PK\3\4" + data[4:], (), "no GGUF file"),
    "truncated": (lambda data: data[: len(data) // 2], (), "end"),
    "unknown architecture": (
        lambda data: data.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0llamb", 1),
        (),
        "llamb",
    ),
    "no tensor": (lambda data: data.replace(b"blk.1.attn_q.", b"blk.1.attn_z."), (), "no tensor 'blk.1.attn_q.weight'"),
    "a prompt too long": (as_it_is, ("-p", "word " * 400), "tokens, the context 256"),
    "a context too long": (as_it_is, ("-c", "2000000000"), "context"),
    "too many shares": (as_it_is, ("-ts", "1,2"), "2 entries"),
    "no shares": (as_it_is, ("-ts", "a,b"), "no list of numbers"),
    "unknown device": (as_it_is, ("-dev", "CUDA0"), "unknown device 'CUDA0'"),
    "no expression": (as_it_is, ("-ot", "(=CPU"), "no regular expression"),
    "nobody there": (as_it_is, ("--rpc", "127.0.0.1:1"), "cannot connect to 127.0.0.1:1"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_the_command_says_one_line_and_fails(case: str, tmp_path: Path) -> None:
    spoil, arguments, said = SPOILT[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(spoil(cached(MODELS["llama-bpe"], "F16").read_bytes()))
    command = [sys.executable, "-m", "ggml_rpc.cli.run", "-m", str(path), "-n", "2", "-p", "a", "-c", "256", "-t", "1"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ggml-rpc run: ")
    assert said in last
    assert "Traceback" not in done.stderr


# ---- Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_ctx": -1}, "n_ctx -1"),
        ({"n_ctx": 1 << 40}, "context"),
        ({"n_ctx": 1 << 63}, "context"),
        ({"n_batch": 0}, "n_batch 0"),
        ({"n_ubatch": -5}, "n_ubatch -5"),
        ({"type_k": "Q4_K"}, "cannot be of type Q4_K"),
        ({"type_v": ""}, "cannot be of type"),
        ({"type_v": "Q8_0", "flash_attn": False}, "need flash attention"),
        ({"tensor_split": ""}, "no list of numbers"),
        ({"tensor_split": "nan"}, "no share"),
        ({"tensor_split": "-1"}, "no share"),
        ({"tensor_split": "0"}, "gives nothing"),
        ({"tensor_split": "1e999"}, "no share"),
        ({"tensor_split": []}, "gives nothing"),
        ({"override_tensor": "=CPU"}, "REGEX=DEVICE"),
        ({"override_tensor": "blk="}, "REGEX=DEVICE"),
        ({"override_tensor": "nothing_like_this=CPU"}, "matches no weight"),
        ({"override_tensor": "[=CPU"}, "no regular expression"),
        ({"device": ""}, "is empty"),
        ({"device": "CPU,CPU"}, "stands twice"),
        ({"main_device": "7"}, "no main device 7"),
        ({"main_device": "RPC0"}, "unknown device"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RpcError, match=said) as caught:
        LLM(cached(TINY["llama"], "Q8_0"), **{"n_ctx": 256, "threads": 1, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"threads": 0}, "threads"),
        ({"timeout": 0, "rpc": "127.0.0.1:1"}, "positive"),
        ({"timeout": float("nan"), "rpc": "127.0.0.1:1"}, "positive"),
        ({"rpc": "a:b:c"}, "a:b:c"),
        ({"rpc": "host:99999"}, "99999"),
        ({"rpc": "host:1,,host:2"}, "empty entry"),
        ({"rpc": "127.0.0.1:1", "dialect": "9.9"}, "unknown dialect"),
        ({"flash_attn": "perhaps"}, "on, off or auto"),
        ({"on_loss": "ignore"}, "'error' or 'redistribute'"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LLM(cached(TINY["llama"], "Q8_0"), **{"n_ctx": 256, **options})


def test_prompts_that_do_not_fit() -> None:
    with LLM(cached(TINY["llama"], "Q8_0"), n_ctx=256, threads=1) as llm:
        for prompt, said in (
            ([1] * 257, "257 tokens, the context 256"),
            ([96], "96, which is no token of 96"),
            ([-1], "-1, which is no token"),
            ([1 << 70], "no token"),
            ([], "empty"),
        ):
            with pytest.raises(ContextError, match=said):
                llm.generate(prompt)
        answer = llm.generate([1] * 256, sampling=SamplingParams(temperature=0), ignore_eos=True)
        assert (answer.finish(), answer.reason, len(answer.tokens)) == ("", "length", 1)
