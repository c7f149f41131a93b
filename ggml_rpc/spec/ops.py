"""Ops: one row an op, with its sources in slot order and the layout of its parameter words.

Internal ids are the op numbers of protocol 8.0.0 (0 to 100). Ops that exist only in ik_llama.cpp take ids from 128 on;
so do ops of both whose name stands for something else there (the last ones).

A parameter word is one of the 16 i32 words of `op_params`; an `f32` is stored as its bits, an `i64` or a pointer
takes two words. A parameter with an `enum` is translated by the dialect's table of that name; a `mask` limits the
translation to those bits.

Facts about sources and parameters: ggml.c (the constructors) of llama.cpp, 7.0.0, and of ik_llama.cpp, 3.5.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .limits import MAX_SRC

ParamKind = Literal["i32", "f32", "i64", "ptr"]


@dataclass(frozen=True, slots=True)
class Src:
    """One source slot. Its position in `OpSpec.sources` is its slot on the wire."""

    name: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: first word, kind, name, and the enumeration its value belongs to (None for plain numbers)."""

    word: int
    kind: ParamKind
    name: str
    enum: str | None = None
    mask: int = 0xFFFFFFFF

    @property
    def words(self) -> int:
        """Return how many of the 16 words the parameter takes."""
        return 2 if self.kind in ("i64", "ptr") else 1


@dataclass(frozen=True, slots=True)
class OpSpec:
    """Describe one op.

    Parameters
    ----------
    id : int
        Internal id.
    name : str
        Name without prefix.
    sources : tuple of Src
        Slot i of the wire record is `sources[i]`. Slots beyond must be empty.
    params : tuple of Param
        Layout of the parameter words; words not listed carry no meaning.
    is_noop : bool
        The node computes nothing; its data are those of the tensor it views.
    pointer_params : bool
        The parameters hold a function pointer of the client.
    refused : str
        Why the op is never accepted over the wire, as the end of a sentence that begins with its name; empty for ops
        that are.
    inplace : bool
        The result may lie exactly on a source of the same layout (allocators of clients arrange this).
    writes_into : int or None
        Slot of the source that the result is a view of, where the op changes that tensor.
    """

    id: int
    name: str
    sources: tuple[Src, ...]
    params: tuple[Param, ...] = ()
    is_noop: bool = False
    pointer_params: bool = False
    refused: str = ""
    inplace: bool = False
    writes_into: int | None = None

    @property
    def required_mask(self) -> int:
        """Return the bits of the slots that must hold a tensor."""
        return sum(1 << i for i, s in enumerate(self.sources) if not s.optional)

    @property
    def allowed_mask(self) -> int:
        """Return the bits of the slots that may hold a tensor."""
        return (1 << len(self.sources)) - 1

    @property
    def min_src(self) -> int:
        """Return one more than the last slot that must hold a tensor."""
        return self.required_mask.bit_length()


def _src(text: str) -> tuple[Src, ...]:
    """Parse 'x mask? sinks?' into source slots; a question mark means optional."""
    return tuple(Src(word.rstrip("?"), word.endswith("?")) for word in text.split())


def _words(kind: ParamKind, names: str, start: int = 0) -> tuple[Param, ...]:
    """Build consecutive one-word parameters of one kind."""
    return tuple(Param(start + i, kind, name) for i, name in enumerate(names.split()))


_EPS = (Param(0, "f32", "eps"),)
_PREC = (Param(0, "i32", "prec", "prec"), Param(1, "i32", "hint", "op_hint"), Param(3, "i32", "prec_src1", "prec"))
_REGION = _words("i32", "nb1 nb2 nb3 offset inplace")
_SOFT_MAX = _words("f32", "scale max_bias")
_ROPE = (
    *_words("i32", "n_past n_dims mode n_ctx n_ctx_orig"),
    *_words("f32", "freq_base freq_scale ext_factor attn_factor beta_fast beta_slow", 5),
    *_words("i32", "section0 section1 section2 section3 n_offs", 11),
)
_IM2COL = _words("i32", "s0 s1 p0 p1 d0 d1 is_2d")
_CONV_2D = _words("i32", "s0 s1 p0 p1 d0 d1")
_POOL = Param(0, "i32", "kind", "pool")
_POOL_2D = (_POOL, *_words("i32", "k0 k1 s0 s1 p0 p1", 1))
_FLASH_ATTN = (
    *_words("f32", "scale max_bias logit_softcap"),
    Param(3, "i32", "prec", "prec"),
    Param(4, "i32", "n_kv_max"),
)
_GATE = (Param(0, "i32", "kind", "unary"), Param(1, "f32", "limit"))
_CUSTOM = (Param(0, "ptr", "function"), Param(2, "i32", "n_tasks"), Param(4, "ptr", "userdata"))
_HOLES = " ".join(f"arg{i}?" for i in range(10))


def _op(
    id: int,
    name: str,
    sources: str = "x",
    params: tuple[Param, ...] = (),
    *,
    noop: bool = False,
    pointers: bool = False,
    refused: str = "",
    inplace: bool = False,
    into: int | None = None,
) -> OpSpec:
    refused = "carries a function pointer" if pointers else refused
    return OpSpec(id, name, _src(sources), params, noop, pointers, refused, inplace, into)


OPS: tuple[OpSpec, ...] = (
    _op(0, "NONE", "", noop=True),
    _op(1, "DUP", inplace=True),
    _op(2, "ADD", "a b", inplace=True),
    _op(3, "ADD_ID", "a b ids", inplace=True),
    _op(4, "ADD1", "a b", inplace=True),
    _op(5, "ACC", "a b", _REGION, inplace=True),
    _op(6, "SUB", "a b", inplace=True),
    _op(7, "MUL", "a b", inplace=True),
    _op(8, "DIV", "a b", inplace=True),
    _op(9, "SQR", inplace=True),
    _op(10, "SQRT", inplace=True),
    _op(11, "LOG", inplace=True),
    _op(12, "SIN", inplace=True),
    _op(13, "COS", inplace=True),
    _op(14, "SUM"),
    _op(15, "SUM_ROWS"),
    _op(16, "CUMSUM"),
    _op(17, "MEAN"),
    _op(18, "ARGMAX"),
    _op(19, "COUNT_EQUAL", "a b"),
    _op(20, "REPEAT"),
    _op(21, "REPEAT_BACK"),
    _op(22, "CONCAT", "a b", _words("i32", "dim")),
    _op(23, "SILU_BACK", "grad x", inplace=True),
    _op(24, "NORM", "x", _EPS, inplace=True),
    _op(25, "RMS_NORM", "x", _EPS, inplace=True),
    _op(26, "RMS_NORM_BACK", "grad x", _EPS, inplace=True),
    _op(27, "GROUP_NORM", "x", (Param(0, "i32", "n_groups"), Param(1, "f32", "eps")), inplace=True),
    _op(28, "L2_NORM", "x", _EPS, inplace=True),
    _op(29, "MUL_MAT", "a b", _PREC),
    _op(30, "MUL_MAT_ID", "as b ids", (_PREC[0], _PREC[2])),
    _op(31, "OUT_PROD", "a b"),
    _op(32, "SCALE", "x", _words("f32", "scale bias"), inplace=True),
    _op(33, "SET", "a b", _REGION, inplace=True),
    _op(34, "CPY", "x dst", into=1),
    _op(35, "CONT"),
    _op(36, "RESHAPE", noop=True),
    _op(37, "VIEW", "x", (Param(0, "i64", "offset"),), noop=True),
    _op(38, "PERMUTE", "x", _words("i32", "axis0 axis1 axis2 axis3"), noop=True),
    _op(39, "TRANSPOSE", noop=True),
    _op(40, "GET_ROWS", "x ids"),
    _op(41, "GET_ROWS_BACK", "grad ids"),
    _op(42, "SET_ROWS", "values ids dst", into=2),
    _op(43, "DIAG"),
    _op(44, "DIAG_MASK_INF", "x", _words("i32", "n_past"), inplace=True),
    _op(45, "DIAG_MASK_ZERO", "x", _words("i32", "n_past"), inplace=True),
    _op(46, "SOFT_MAX", "x mask? sinks?", _SOFT_MAX, inplace=True),
    _op(47, "SOFT_MAX_BACK", "grad y", _SOFT_MAX, inplace=True),
    _op(48, "ROPE", "x pos freq_factors?", _ROPE, inplace=True),
    _op(49, "ROPE_BACK", "grad pos freq_factors?", _ROPE, inplace=True),
    _op(50, "CLAMP", "x", _words("f32", "min max"), inplace=True),
    _op(51, "CONV_TRANSPOSE_1D", "kernel x", _words("i32", "s0 p0 d0")),
    _op(52, "IM2COL", "kernel x", _IM2COL),
    _op(53, "IM2COL_BACK", "grad kernel", _IM2COL),
    _op(54, "IM2COL_3D", "kernel x", _words("i32", "s0 s1 s2 p0 p1 p2 d0 d1 d2 channels")),
    _op(55, "COL2IM_1D", "x", _words("i32", "s0 channels p0")),
    _op(56, "CONV_2D", "kernel x", _CONV_2D),
    _op(57, "CONV_3D", "kernel x", _words("i32", "s0 s1 s2 p0 p1 p2 d0 d1 d2 channels batch channels_out")),
    _op(58, "CONV_2D_DW", "kernel x", _CONV_2D),
    _op(59, "CONV_TRANSPOSE_2D", "kernel x", _words("i32", "stride")),
    _op(60, "POOL_1D", "x", (_POOL, *_words("i32", "k0 s0 p0", 1))),
    _op(61, "POOL_2D", "x", _POOL_2D),
    _op(62, "POOL_2D_BACK", "grad x", _POOL_2D),
    _op(63, "UPSCALE", "x", (Param(0, "i32", "mode", "scale_mode", 0xFF),)),
    _op(64, "PAD", "x", _words("i32", "lp0 rp0 lp1 rp1 lp2 rp2 lp3 rp3 circular")),
    _op(65, "PAD_REFLECT_1D", "x", _words("i32", "p0 p1")),
    _op(66, "ROLL", "x", _words("i32", "shift0 shift1 shift2 shift3")),
    _op(67, "ARANGE", "", _words("f32", "start stop step")),
    _op(68, "TIMESTEP_EMBEDDING", "x", _words("i32", "dim max_period")),
    _op(69, "ARGSORT", "x", (Param(0, "i32", "order", "sort_order"),)),
    _op(70, "TOP_K"),
    _op(71, "LEAKY_RELU", "x", _words("f32", "negative_slope"), inplace=True),
    _op(72, "TRI", "x", (Param(0, "i32", "kind", "tri"),)),
    _op(73, "FILL", "x", _words("f32", "value"), inplace=True),
    _op(74, "FLASH_ATTN_EXT", "q k v mask? sinks?", _FLASH_ATTN),
    _op(75, "FLASH_ATTN_BACK", "q k v grad", _words("i32", "masked")),
    _op(76, "SSM_CONV", "x kernel"),
    _op(77, "SSM_SCAN", "state x dt a b c ids", _words("i32", "n_snapshots")),
    _op(78, "WIN_PART", "x", _words("i32", "npx npy window")),
    _op(79, "WIN_UNPART", "x", _words("i32", "window")),
    _op(80, "GET_REL_POS"),
    _op(81, "ADD_REL_POS", "x pw ph", _words("i32", "inplace"), inplace=True),
    _op(82, "RWKV_WKV6", "k v r tf td state"),
    _op(83, "GATED_LINEAR_ATTN", "k v q g state", _words("f32", "scale")),
    _op(84, "RWKV_WKV7", "r w k v a b state"),
    _op(85, "SOLVE_TRI", "a b"),
    _op(86, "GATED_DELTA_NET", "q k v g beta state", _words("i32", "n_snapshots")),
    _op(87, "LIGHTNING_INDEXER", "q k weights mask"),
    _op(88, "DSV4_HC_COMB", "mixes scale base", (Param(0, "f32", "eps"), Param(1, "i32", "n_iter"))),
    _op(89, "DSV4_HC_PRE", "x weights", (Param(0, "f32", "scale"), Param(1, "i32", "gated"))),
    _op(90, "DSV4_HC_POST", "x residual post comb?"),
    # XIELU alone uses words 1 to 4.
    _op(
        91,
        "UNARY",
        "x",
        (Param(0, "i32", "kind", "unary"), *_words("f32", "alpha_n alpha_p beta eps", 1)),
        inplace=True,
    ),
    _op(92, "MAP_CUSTOM1", "a", _CUSTOM, pointers=True, inplace=True),
    _op(93, "MAP_CUSTOM2", "a b", _CUSTOM, pointers=True, inplace=True),
    _op(94, "MAP_CUSTOM3", "a b c", _CUSTOM, pointers=True, inplace=True),
    _op(95, "CUSTOM", _HOLES, _CUSTOM, pointers=True, inplace=True),
    _op(96, "CROSS_ENTROPY_LOSS", "logits labels"),
    _op(97, "CROSS_ENTROPY_LOSS_BACK", "grad logits labels"),
    _op(98, "OPT_STEP_ADAMW", "x grad m v params", into=0),
    _op(99, "OPT_STEP_SGD", "x grad params", into=0),
    # alpha belongs to SWIGLU_OAI, limit to SWIGLU_OAI and SWIGLU_CLAMP.
    _op(
        100,
        "GLU",
        "a b?",
        (Param(0, "i32", "kind", "glu"), Param(1, "i32", "swapped"), *_words("f32", "alpha limit", 2)),
    ),
    # ---- ik_llama.cpp only ----
    _op(128, "FUSED_RMS_NORM", "x weight?", _EPS, inplace=True),
    _op(129, "FUSED_MUL_UNARY", "gate x", _GATE, inplace=True),
    _op(130, "MULTI_ADD", "x", _words("i32", "n")),
    _op(131, "FUSED_UP_GATE", "up gate x", _GATE),
    _op(132, "MOE_FUSED_UP_GATE", "up gate? x ids up_bias? gate_bias?", _GATE),
    _op(133, "MUL_MULTI_ADD", "x weights scale? ids?"),
    _op(134, "HADAMARD", "x", _words("i32", "n"), inplace=True),
    _op(135, "ROPE_CACHE", "pos freq_factors?", _ROPE),
    _op(136, "ROPE_FAST", "x cache", _words("i32", "n_dims mode"), inplace=True),
    _op(137, "ARGSORT_THRESH", "x", (Param(0, "i32", "min_entries"), Param(1, "f32", "threshold"))),
    _op(138, "GROUPED_TOPK", "x", _words("i32", "groups top_groups n_best")),
    _op(139, "SOFTCAP", "x", _words("f32", "before after"), inplace=True),
    _op(140, "SOFT_CAP_MAX", "x mask?", _words("f32", "scale max_bias before after"), inplace=True),
    _op(141, "DELTA_NET", "q k v g beta state states?", _words("i32", "repeat")),
    _op(
        142,
        "REDUCE",
        " ".join(f"part{i}?" for i in range(16)),
        _words("i32", "kind n present off placeholders"),
        refused="adds what lies on several devices of the client, which no server reaches",
    ),
    _op(143, "FAKE_CPY", "dst x", refused="orders the work of several devices of the client, and computes nothing"),
    _op(144, "FUSED_NORM", "x weight", _EPS, inplace=True),
    _op(145, "FUSED_RMS_RMS_ADD", "a weight_a b weight_b", _EPS, inplace=True),
    _op(146, "BLEND", "x ids", _words("f32", "value"), inplace=True),
    _op(147, "INDEXER_TOPK", "k q weights mask", (Param(0, "i32", "kind", "unary"),)),
    _op(148, "MASK_TOPK", "mask ids", inplace=True),
    _op(
        149,
        "SINKHORN",
        "x",
        (*_words("i32", "n n_iter"), Param(2, "f32", "eps"), Param(3, "i32", "transpose")),
    ),
    _op(150, "HC_PRE", "x scale bias", (*_words("i32", "n n_iter"), Param(2, "f32", "eps"))),
    _op(151, "HC_POST", "x post residual comb"),
    _op(152, "MASK_TO_IDX", "mask"),
    _op(
        153,
        "LATENT_ATTN",
        "q cache prefix_k? prefix_v? mask? ids?",
        (*_words("f32", "scale max_bias"), *_words("i32", "dv offset mode", 2)),
    ),
    _op(154, "DS4_COMP", "state score ids", _words("i32", "kind")),
    # The parameters of these hold functions of the client.
    _op(155, "MAP_UNARY", "a", _CUSTOM, pointers=True, inplace=True),
    _op(156, "MAP_BINARY", "a b", _CUSTOM, pointers=True, inplace=True),
    _op(157, "MAP_CUSTOM1_F32", "a", _CUSTOM, pointers=True, inplace=True),
    _op(158, "MAP_CUSTOM2_F32", "a b", _CUSTOM, pointers=True, inplace=True),
    _op(159, "MAP_CUSTOM3_F32", "a b c", _CUSTOM, pointers=True, inplace=True),
    # ---- ik_llama.cpp's meaning of names that both have ----
    _op(160, "IK_SSM_CONV", "state x kernel map states?"),
    _op(161, "IK_SSM_SCAN", "state x dt a b c map"),
    _op(162, "SUM_DIM", "x", _words("i32", "dim")),  # SUM_ROWS with a dimension other than 0
    _op(163, "GATHER", "x ids"),  # GET_ROWS along dimension 0
    _op(164, "FLASH_ATTN_ROWS", "q k v mask? sinks? rows", _FLASH_ATTN),  # FLASH_ATTN_EXT over listed cache rows
)

OP_BY_ID: Mapping[int, OpSpec] = MappingProxyType({o.id: o for o in OPS})
OP_BY_NAME: Mapping[str, OpSpec] = MappingProxyType({o.name: o for o in OPS})

OP_COUNT = 1 + max(OP_BY_ID)
"""One more than the largest internal id."""

FIRST_IK_OP = 128
"""First internal id for ops that only ik_llama.cpp has."""

if any(len(o.sources) > MAX_SRC for o in OPS):
    raise ValueError("an op has more sources than MAX_SRC")
