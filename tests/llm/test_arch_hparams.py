"""Settings are read as stock llama.cpp reads them, and what cannot be is refused with the key's name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.errors import ModelError
from ggml_rpc.llm.arch import ARCHITECTURES, INPUT, OUTPUT, architecture_of
from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.hparams import HParams
from ggml_rpc.spec.enums import RopeMode

gguf = pytest.importorskip("gguf")

SOUND: dict[str, Any] = {
    "block_count": 12,
    "context_length": 4096,
    "embedding_length": 256,
    "feed_forward_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
}


def opened(folder: Path, arch: str = "llama", /, **changes: Any) -> GgufFile:
    """Write a file of settings alone and open it; dots of keys are written as two underscores, None leaves one out."""
    writer = gguf.GGUFWriter(folder / "settings.gguf", arch)
    writer.add_token_list([f"t{i}" for i in range(32)])
    for key, value in {**SOUND, **{k.replace("__", "."): v for k, v in changes.items()}}.items():
        name = f"{arch}.{key}"
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value) if value >= 0 else writer.add_int32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return GgufFile.open(folder / "settings.gguf")


def read(folder: Path, arch: str = "llama", /, **changes: Any) -> HParams:
    """Return the settings of such a file."""
    with opened(folder, arch, **changes) as file:
        return architecture_of(file).hparams(file)


def test_defaults(tmp_path: Path) -> None:
    hp = read(tmp_path)
    assert (hp.n_vocab, hp.n_layer, hp.n_embd, hp.n_ctx_train) == (32, 12, 256, 4096)
    assert hp.n_head == (8,) * 12
    assert hp.n_head_kv == (2,) * 12
    assert hp.head_dim_k == hp.head_dim_v == hp.rope.n_dims == 32
    assert hp.kq_scale == pytest.approx(32**-0.5)
    assert (hp.rope.base, hp.rope.scale, hp.rope.ext_factor, hp.rope.attn_factor) == (10000.0, 1.0, 0.0, 1.0)
    assert not any(hp.windowed)
    assert read(tmp_path, attention__head_count_kv=None).n_head_kv == (8,) * 12
    assert read(tmp_path, attention__scale=0.5).kq_scale == 0.5


def test_one_number_a_layer(tmp_path: Path) -> None:
    kv = [1, 2, 4, 8] * 3
    hp = read(tmp_path, attention__head_count_kv=kv, feed_forward_length=[512 + 32 * i for i in range(12)])
    assert hp.n_head_kv == tuple(kv)
    assert [hp.n_embd_k(il) for il in range(4)] == [32, 64, 128, 256]
    assert hp.n_ff[11] == 512 + 32 * 11


@pytest.mark.parametrize(
    ("changes", "scale", "ext_factor", "attn_factor"),
    [
        ({"rope__scaling__factor": 4.0}, 0.25, 0.0, 1.0),
        ({"rope__scale_linear": 2.0}, 0.5, 0.0, 1.0),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, 1.0, 0.0, 1.0),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}, 0.25, 1.0, 1.0),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 0.5}, 2.0, 1.0, 1 / (1 - 0.1 * math.log(2))),
        ({"rope__scaling__type": "longrope", "rope__scaling__attn_factor": 1.19}, 1.0, 0.0, 1.19),
    ],
)
def test_scaling_of_positions(
    changes: dict[str, Any], scale: float, ext_factor: float, attn_factor: float, tmp_path: Path
) -> None:
    rope = read(tmp_path, **changes).rope
    assert (rope.scale, rope.ext_factor) == (scale, ext_factor)
    assert rope.attn_factor == pytest.approx(attn_factor)


def test_windows_of_gemma(tmp_path: Path) -> None:
    hp = read(tmp_path, "gemma2", rope__freq_base=20000.0, rope__scaling__factor=2.0)
    assert hp.window == 4096
    assert hp.windowed == (True, False) * 6
    assert (hp.rope.base_windowed, hp.rope.scale_windowed) == (20000.0, 0.5)
    assert (hp.attention_cap, hp.logit_cap) == (50.0, 30.0)
    assert hp.embedding_scale == 16.0
    hp = read(tmp_path, "gemma3", rope__freq_base=1e6, rope__scaling__factor=8.0, attention__sliding_window=512)
    assert hp.windowed == ((True,) * 5 + (False,)) * 2
    assert (hp.rope.base, hp.rope.scale) == (1e6, 0.125)
    assert (hp.rope.base_windowed, hp.rope.scale_windowed) == (10000.0, 1.0)
    assert (hp.attention_cap, hp.logit_cap) == (0.0, 0.0)
    assert not any(read(tmp_path, "gemma3").windowed)
    listed = [True, True, False] * 4
    hp = read(tmp_path, "gemma3", attention__sliding_window=512, attention__sliding_window_pattern=listed)
    assert hp.windowed == tuple(listed)
    assert not any(read(tmp_path, "phi3", attention__sliding_window=512).windowed)


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_of_gemma_scale_by_the_width(arch: str, layers: int, tmp_path: Path) -> None:
    assert read(tmp_path, arch, attention__key_length=64).attention_scale == pytest.approx(1 / 8)
    hp = read(tmp_path, arch, attention__key_length=64, block_count=layers)
    assert hp.attention_scale == pytest.approx(32**-0.5)


def test_experts(tmp_path: Path) -> None:
    hp = read(tmp_path, expert_count=8, expert_used_count=2)
    assert (hp.n_expert, hp.n_expert_used, hp.n_ff_expert) == (8, 2, 512)
    hp = read(tmp_path, "qwen3moe", expert_count=8, expert_used_count=4)
    assert hp.n_ff_expert == 128
    hp = read(tmp_path, "qwen3moe", expert_count=8, expert_used_count=4, expert_feed_forward_length=96)
    assert hp.n_ff_expert == 96


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("llama", {"block_count": 0}, "block_count' is 0"),
        ("llama", {"block_count": 1 << 30}, "block_count' is 1073741824"),
        ("llama", {"block_count": None}, "no 'llama.block_count'"),
        ("llama", {"embedding_length": "wide"}, "embedding_length' must be a whole number"),
        ("llama", {"attention__head_count": 0}, "head_count' is 0"),
        (
            "llama",
            {"attention__head_count": 7, "attention__head_count_kv": None},
            "7 heads do not divide the width 256",
        ),
        ("llama", {"attention__head_count_kv": 3}, "3 does not divide 8 query heads"),
        ("llama", {"attention__head_count_kv": [2] * 11}, "head_count_kv' must be an array of 12"),
        ("llama", {"attention__head_count_kv": [2] * 11 + [0]}, "head_count_kv' holds 0"),
        ("llama", {"attention__layer_norm_rms_epsilon": 0.0}, "0.0 is not between 0 and 1"),
        ("llama", {"attention__layer_norm_rms_epsilon": math.nan}, "rms_epsilon' must be a finite number"),
        ("llama", {"attention__layer_norm_rms_epsilon": None}, "no 'llama.attention.layer_norm_rms_epsilon'"),
        ("llama", {"attention__causal": False}, "only causal models"),
        ("llama", {"attention__scale": -1.0}, "attention.scale' cannot be right: -1.0 is negative"),
        ("llama", {"feed_forward_length": None}, "feed_forward_length' cannot be right: it is missing"),
        ("llama", {"rope__dimension_count": 16}, "16 is not the head's 32"),
        ("phi3", {"rope__dimension_count": 34}, "not an even number up to the head's 32"),
        ("phi3", {"rope__dimension_count": 31}, "not an even number"),
        ("llama", {"rope__freq_base": 0.0}, "0.0 is not above 0"),
        ("llama", {"rope__scaling__type": "ntk"}, "'ntk' is none of none, linear, yarn, longrope"),
        ("llama", {"rope__scaling__factor": 1e-5}, "stretches positions by more than 100"),
        ("llama", {"expert_count": 8}, "0 of 8 experts"),
        ("llama", {"expert_count": 2, "expert_used_count": 3}, "3 of 2 experts"),
        ("llama", {"expert_used_count": 3}, "3 of 0 experts"),
        ("llama", {"expert_count": 8, "expert_used_count": 2, "expert_group_count": 2}, "grouped experts"),
        ("llama", {"expert_count": 8, "expert_used_count": [2] * 11 + [3]}, "another number of experts in each layer"),
        ("llama", {"expert_count": 8, "expert_used_count": 2, "feed_forward_length": None}, "feed_forward_length"),
        ("qwen3moe", {}, "needs experts"),
        ("gemma3", {"attention__sliding_window": 8, "attention__sliding_window_pattern": [True]}, "an array of 12"),
        ("mamba", {}, "'mamba', which cannot be run; these can: gemma2, gemma3, llama"),
    ],
)
def test_what_cannot_be(arch: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, arch, **changes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_name_their_places(name: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"expert_count": 8, "expert_used_count": 2} if name == "qwen3moe" else {}
    with opened(tmp_path, name, **changes) as file:
        architecture = architecture_of(file)
        hp = architecture.hparams(file)
        tied = architecture.weights(hp, ())
        fused = architecture.weights(hp, {"blk.3.attn_qkv.weight", "output.weight"})
    names = [spec.name for spec in tied]
    assert len(set(names)) == len(names)
    assert {spec.layer for spec in tied} == {INPUT, OUTPUT, *range(12)}
    assert all(spec.name.startswith(f"blk.{spec.layer}.") for spec in tied if spec.layer >= 0)
    by_name = {spec.name: spec for spec in tied}
    assert by_name["output.weight"].tensor == "token_embd.weight"
    assert {"blk.3.attn_q.weight", "blk.3.attn_k.weight", "blk.3.attn_v.weight"} < set(names)
    by_name = {spec.name: spec for spec in fused}
    assert by_name["output.weight"].tensor == ("token_embd.weight" if name == "gemma2" else "output.weight")
    assert by_name["blk.3.attn_qkv.weight"].ne == (256, 256 + 64 + 64)
    assert "blk.3.attn_q.weight" not in by_name
    assert "blk.2.attn_q.weight" in by_name
    mode = RopeMode.NORMAL if name == "llama" else RopeMode.NEOX
    assert hp.rope.mode == mode
