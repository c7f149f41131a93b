"""Small random models of recurrent and hybrid architectures as GGUF files that stock llama.cpp runs."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggml_rpc.peers.cache import cache_dir

N_VOCAB, N_EMBD, N_FF, N_LAYER, HEAD = 256, 64, 96, 2, 32
D_CONV, D_INNER, D_STATE = 4, 128, 16
EPS = 1e-5

Shape = tuple[int, ...]


class Model:
    """One model: keys, and tensors by their GGUF names."""

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.keys: dict[str, Any] = {
            "block_count": N_LAYER,
            "context_length": 512,
            "embedding_length": N_EMBD,
            "feed_forward_length": N_FF,
            "vocab_size": N_VOCAB,
        }
        self.tensors: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(zlib.crc32(arch.encode()))
        self.matrix("token_embd.weight", N_VOCAB, N_EMBD, gain=N_EMBD**0.5)

    def matrix(self, name: str, *shape: int, gain: float = 1.0) -> None:
        """Add a matrix [..., n_out, n_in] whose products keep the size of what goes in."""
        self.tensors[name] = (self.rng.standard_normal(shape) * gain * shape[-1] ** -0.5).astype(np.float32)

    def vector(self, name: str, *shape: int, mean: float = 1.0, deviation: float = 0.1) -> None:
        """Add numbers around a mean."""
        self.tensors[name] = (mean + deviation * self.rng.standard_normal(shape)).astype(np.float32)

    def norm(self, name: str, *shape: int, bias: bool = False) -> None:
        """Add the factors of a norm, and its addends if it has some."""
        self.vector(f"{name}.weight", *shape)
        if bias:
            self.vector(f"{name}.bias", *shape, mean=0.0)

    def output(self, *, name: str = "output_norm", bias: bool = False) -> None:
        """Add what follows the layers."""
        self.norm(name, N_EMBD, bias=bias)
        self.matrix("output.weight", N_VOCAB, N_EMBD, gain=2.0)

    def dense(self, b: str) -> None:
        """Add a feed-forward part."""
        self.norm(f"{b}.ffn_norm", N_EMBD)
        self.matrix(f"{b}.ffn_gate.weight", N_FF, N_EMBD)
        self.matrix(f"{b}.ffn_up.weight", N_FF, N_EMBD)
        self.matrix(f"{b}.ffn_down.weight", N_EMBD, N_FF)

    def attention(self, b: str, *, gated: bool = False, qk_norm: bool = True) -> None:
        """Add attention with two heads of queries and one of keys."""
        self.matrix(f"{b}.attn_q.weight", 2 * HEAD * (2 if gated else 1), N_EMBD)
        self.matrix(f"{b}.attn_k.weight", HEAD, N_EMBD)
        self.matrix(f"{b}.attn_v.weight", HEAD, N_EMBD)
        self.matrix(f"{b}.attn_output.weight", N_EMBD, 2 * HEAD)
        if qk_norm:
            self.norm(f"{b}.attn_q_norm", HEAD)
            self.norm(f"{b}.attn_k_norm", HEAD)

    def heads(self, *kv: int) -> None:
        """Say how many heads of keys each layer has: none in recurrent ones."""
        self.keys |= {
            "attention.head_count": 2,
            "attention.head_count_kv": list(kv),
            "attention.key_length": HEAD,
            "attention.value_length": HEAD,
            "rope.dimension_count": HEAD,
        }

    def scan(self, rank: int, state: int = D_STATE, groups: int = 0) -> None:
        """Say how large state-space layers are."""
        self.keys |= {
            "attention.layer_norm_rms_epsilon": EPS,
            "ssm.conv_kernel": D_CONV,
            "ssm.inner_size": D_INNER,
            "ssm.state_size": state,
            "ssm.time_step_rank": rank,
        }
        if groups:
            self.keys["ssm.group_count"] = groups

    def mamba2_layer(self, b: str, rank: int, groups: int) -> None:
        """Add a layer of Mamba-2."""
        conv = D_INNER + 2 * groups * D_STATE
        self.norm(f"{b}.attn_norm", N_EMBD)
        self.matrix(f"{b}.ssm_in.weight", D_INNER + conv + rank, N_EMBD)
        self.matrix(f"{b}.ssm_conv1d.weight", conv, D_CONV)
        self.vector(f"{b}.ssm_conv1d.bias", conv, mean=0.0)
        self.vector(f"{b}.ssm_dt.bias", rank, mean=-2.0)
        self.vector(f"{b}.ssm_a", rank, 1, mean=-1.0)
        self.vector(f"{b}.ssm_d", rank, 1)
        self.norm(f"{b}.ssm_norm", groups, D_INNER // groups)
        self.matrix(f"{b}.ssm_out.weight", N_EMBD, D_INNER)


def _mamba(m: Model) -> None:
    rank = 8
    m.scan(rank)
    for i in range(N_LAYER):
        b = f"blk.{i}"
        m.norm(f"{b}.attn_norm", N_EMBD)
        m.matrix(f"{b}.ssm_in.weight", 2 * D_INNER, N_EMBD)
        m.matrix(f"{b}.ssm_conv1d.weight", D_INNER, D_CONV)
        m.vector(f"{b}.ssm_conv1d.bias", D_INNER, mean=0.0)
        m.matrix(f"{b}.ssm_x.weight", rank + 2 * D_STATE, D_INNER)
        m.matrix(f"{b}.ssm_dt.weight", D_INNER, rank)
        m.vector(f"{b}.ssm_dt.bias", D_INNER, mean=-2.0)
        m.vector(f"{b}.ssm_a", D_INNER, D_STATE, mean=-1.0)
        m.vector(f"{b}.ssm_d", D_INNER)
        m.matrix(f"{b}.ssm_out.weight", N_EMBD, D_INNER)
    m.output()


def _mamba2(m: Model) -> None:
    m.scan(4, groups=2)
    for i in range(N_LAYER):
        m.mamba2_layer(f"blk.{i}", 4, 2)
    m.output()


def _granite_hybrid(m: Model) -> None:
    m.scan(4, groups=1)
    m.heads(0, 1)
    m.mamba2_layer("blk.0", 4, 1)
    m.dense("blk.0")
    m.norm("blk.1.attn_norm", N_EMBD)
    m.attention("blk.1", qk_norm=False)
    m.dense("blk.1")
    m.output()


def _lfm2(m: Model) -> None:
    m.keys |= {"shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": EPS}
    m.heads(0, 1)
    m.norm("blk.0.attn_norm", N_EMBD)
    m.matrix("blk.0.shortconv.conv.weight", N_EMBD, 3)
    m.matrix("blk.0.shortconv.in_proj.weight", 3 * N_EMBD, N_EMBD)
    m.matrix("blk.0.shortconv.out_proj.weight", N_EMBD, N_EMBD)
    m.dense("blk.0")
    m.norm("blk.1.attn_norm", N_EMBD)
    m.attention("blk.1")
    m.dense("blk.1")
    m.output(name="token_embd_norm")


def _rwkv(m: Model) -> None:
    m.keys |= {
        "attention.head_count": 0,
        "attention.layer_norm_epsilon": EPS,
        "wkv.head_size": HEAD,
        "token_shift_count": 2,
    }
    m.norm("token_embd_norm", N_EMBD, bias=True)


def _rwkv6(m: Model) -> None:
    mix, decay = 8, 8
    _rwkv(m)
    m.keys |= {"time_mix_extra_dim": mix, "time_decay_extra_dim": decay}
    for i in range(N_LAYER):
        b = f"blk.{i}"
        m.norm(f"{b}.attn_norm", N_EMBD, bias=True)
        m.norm(f"{b}.attn_norm_2", N_EMBD, bias=True)
        m.matrix(f"{b}.time_mix_w1.weight", 5 * mix, N_EMBD)
        m.matrix(f"{b}.time_mix_w2.weight", 5, N_EMBD, mix)
        m.vector(f"{b}.time_mix_lerp_x.weight", 1, 1, N_EMBD, mean=0.5)
        m.vector(f"{b}.time_mix_lerp_fused.weight", 5, 1, 1, N_EMBD, mean=0.5)
        m.vector(f"{b}.time_mix_first.weight", N_EMBD // HEAD, HEAD, mean=0.5)
        m.vector(f"{b}.time_mix_decay.weight", N_EMBD, mean=-1.0)
        m.matrix(f"{b}.time_mix_decay_w1.weight", decay, N_EMBD)
        m.matrix(f"{b}.time_mix_decay_w2.weight", N_EMBD, decay)
        for name in ("key", "value", "receptance", "gate", "output"):
            m.matrix(f"{b}.time_mix_{name}.weight", N_EMBD, N_EMBD)
        m.norm(f"{b}.time_mix_ln", N_EMBD, bias=True)
        for name in ("k", "r"):
            m.vector(f"{b}.channel_mix_lerp_{name}.weight", 1, 1, N_EMBD, mean=0.5)
        m.matrix(f"{b}.channel_mix_key.weight", N_FF, N_EMBD)
        m.matrix(f"{b}.channel_mix_value.weight", N_EMBD, N_FF)
        m.matrix(f"{b}.channel_mix_receptance.weight", N_EMBD, N_EMBD)
    m.output(bias=True)


def _rwkv7(m: Model) -> None:
    ranks = {"w": 8, "a": 8, "v": 8, "g": 16}
    _rwkv(m)
    names = {"w": "decay", "a": "iclr", "v": "value_residual_mix", "g": "gate"}
    m.keys |= {f"attention.{names[kind]}_lora_rank": rank for kind, rank in ranks.items()}
    for i in range(N_LAYER):
        b = f"blk.{i}"
        m.norm(f"{b}.attn_norm", N_EMBD, bias=True)
        m.norm(f"{b}.attn_norm_2", N_EMBD, bias=True)
        for kind, rank in ranks.items():
            if kind != "g":
                m.vector(f"{b}.time_mix_{kind}0.weight", N_EMBD, mean=-0.5)
            m.matrix(f"{b}.time_mix_{kind}1.weight", rank, N_EMBD)
            m.matrix(f"{b}.time_mix_{kind}2.weight", N_EMBD, rank)
        m.vector(f"{b}.time_mix_lerp_fused.weight", 6, 1, 1, N_EMBD, mean=0.5)
        for name in ("k_k", "k_a", "r_k"):
            m.vector(f"{b}.time_mix_{name}.weight", N_EMBD, mean=0.5)
        for name in ("key", "value", "receptance", "output"):
            m.matrix(f"{b}.time_mix_{name}.weight", N_EMBD, N_EMBD)
        m.norm(f"{b}.time_mix_ln", N_EMBD, bias=True)
        m.vector(f"{b}.channel_mix_lerp_k.weight", 1, 1, N_EMBD, mean=0.5)
        m.matrix(f"{b}.channel_mix_key.weight", N_FF, N_EMBD)
        m.matrix(f"{b}.channel_mix_value.weight", N_EMBD, N_FF)
    m.output(bias=True)


def _qwen3next(m: Model) -> None:
    key_heads, value_heads, experts = 2, 4, 4
    keys, values = D_STATE * key_heads, D_STATE * value_heads
    m.scan(value_heads, groups=key_heads)
    m.heads(1, 1)
    m.keys |= {
        "ssm.inner_size": values,
        "full_attention_interval": 2,
        "expert_count": experts,
        "expert_used_count": 2,
        "expert_feed_forward_length": N_FF,
        "expert_shared_feed_forward_length": N_FF,
    }
    for i in range(N_LAYER):
        b = f"blk.{i}"
        m.norm(f"{b}.attn_norm", N_EMBD)
        m.norm(f"{b}.post_attention_norm", N_EMBD)
        if i == 1:
            m.attention(b, gated=True)
        else:
            m.matrix(f"{b}.attn_qkv.weight", 2 * keys + values, N_EMBD)
            m.matrix(f"{b}.attn_gate.weight", values, N_EMBD)
            m.matrix(f"{b}.ssm_conv1d.weight", 2 * keys + values, D_CONV)
            m.vector(f"{b}.ssm_dt.bias", value_heads, mean=-1.0)
            m.vector(f"{b}.ssm_a", value_heads, mean=-1.0)
            m.matrix(f"{b}.ssm_ba.weight", 2 * value_heads, N_EMBD)
            m.norm(f"{b}.ssm_norm", D_STATE)
            m.matrix(f"{b}.ssm_out.weight", N_EMBD, values)
        m.matrix(f"{b}.ffn_gate_inp.weight", experts, N_EMBD, gain=4.0)
        m.matrix(f"{b}.ffn_gate_exps.weight", experts, N_FF, N_EMBD)
        m.matrix(f"{b}.ffn_up_exps.weight", experts, N_FF, N_EMBD)
        m.matrix(f"{b}.ffn_down_exps.weight", experts, N_EMBD, N_FF)
        m.vector(f"{b}.ffn_gate_inp_shexp.weight", N_EMBD, mean=0.0)
        m.matrix(f"{b}.ffn_gate_shexp.weight", N_FF, N_EMBD)
        m.matrix(f"{b}.ffn_up_shexp.weight", N_FF, N_EMBD)
        m.matrix(f"{b}.ffn_down_shexp.weight", N_EMBD, N_FF)
    m.output()


BUILDERS: dict[str, Callable[[Model], None]] = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "granitehybrid": _granite_hybrid,
    "lfm2": _lfm2,
    "rwkv6": _rwkv6,
    "rwkv7": _rwkv7,
    "qwen3next": _qwen3next,
}


def _write(path: Path, model: Model) -> None:
    writer = gguf.GGUFWriter(path, model.arch)
    for key, value in model.keys.items():
        full = f"{model.arch}.{key}"
        if isinstance(value, list):
            writer.add_array(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    writer.add_tokenizer_model("no_vocab")
    for name, values in model.tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cached(arch: str) -> Path:
    """Return the file of an architecture's model, made if this file has changed since."""
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    path = cache_dir() / "models" / f"recurrent-{arch}-{digest}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        model = Model(arch)
        BUILDERS[arch](model)
        _write(part, model)
        part.replace(path)
    return path
