"""Every op's method against the legal graphs of `examples.py`: type, shape, parameters, and what a server says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest

from ggml_rpc.errors import GraphError
from ggml_rpc.graph import (
    _ops_attention,
    _ops_convolution,
    _ops_elementwise,
    _ops_gradient,
    _ops_ik,
    _ops_ik_layers,
    _ops_matrix,
    _ops_recurrent,
    _ops_reduction,
    _ops_shape,
    _ops_views,
)
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._graph import check_graph
from ggml_rpc.graph._node import Op
from ggml_rpc.graph._tensor import Place, Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import GluKind, UnaryKind
from ggml_rpc.spec.ops import OP_BY_ID, OP_BY_NAME, OPS
from ggml_rpc.spec.types import TYPE_BY_ID
from tests.graph.examples import EXAMPLES, Example, arena
from tests.support import wiretensor

MODULES: tuple[ModuleType, ...] = (
    _ops_attention,
    _ops_convolution,
    _ops_elementwise,
    _ops_gradient,
    _ops_ik,
    _ops_ik_layers,
    _ops_matrix,
    _ops_recurrent,
    _ops_reduction,
    _ops_shape,
    _ops_views,
)
BASE, ROOM = 0x10_0000, 1 << 26


@dataclass
class Case:
    """An example as a method call sees it: sources as leaves, parameters by the spec's names, and the result."""

    g: Graph
    s: list[Tensor | None]
    op: str
    words: tuple[int, ...]
    ne: tuple[int, ...]
    type: str

    def __getattr__(self, name: str) -> float:
        p = next((p for p in OP_BY_NAME[self.op].params if p.name == name), None)
        if p is None:
            raise AttributeError(name)
        (value,) = struct.unpack("<f" if p.kind == "f32" else "<i", struct.pack("<i", self.words[p.word]))
        return float(value) if p.kind == "f32" else int(value)

    def many(self, *names: str) -> tuple[float, ...]:
        """Return several parameters."""
        return tuple(getattr(self, name) for name in names)

    def named(self, *names: str) -> dict[str, float]:
        """Return several parameters by name."""
        return {name: getattr(self, name) for name in names}


def same(name: str) -> Callable[[Case], Tensor]:
    """Call the method with the sources, and with all parameters of the op by their names."""

    def call(c: Case) -> Tensor:
        return getattr(c.g, name)(*c.s, **c.named(*(p.name for p in OP_BY_NAME[c.op].params)))

    return call


def unary(c: Case) -> Tensor:
    kind = UnaryKind(c.kind)
    more = c.named("alpha_n", "alpha_p", "beta", "eps") if kind == UnaryKind.XIELU else {}
    return getattr(c.g, kind.name.lower())(*c.s, **more)


def glu(c: Case) -> Tensor:
    kind = GluKind(c.kind)
    more = {GluKind.SWIGLU_OAI: ("alpha", "limit"), GluKind.SWIGLU_CLAMP: ("limit",)}.get(kind, ("swapped",))
    return getattr(c.g, kind.name.lower())(*c.s, **c.named(*more))


def rope(c: Case) -> Tensor:
    more = c.named(
        *("n_dims", "mode", "n_ctx_orig", "freq_base", "freq_scale"),
        *("ext_factor", "attn_factor", "beta_fast", "beta_slow", "n_offs"),
    )
    return getattr(c.g, c.op.lower())(*c.s, **more, sections=c.many("section0", "section1", "section2", "section3"))


def set_rows(c: Case) -> Tensor:
    values, ids, dst = c.s
    return c.g.set_rows(dst, values, ids)


def cpy(c: Case) -> Tensor:
    return c.g.cast(c.s[0], c.type) if len(c.s) == 1 else c.g.cpy(*c.s)


def region(c: Case) -> Tensor:
    return getattr(c.g, c.op.lower())(*c.s, c.many("nb1", "nb2", "nb3"), c.offset, inplace=bool(c.inplace))


def steps_2d(c: Case) -> dict[str, tuple[float, ...]]:
    return {"stride": c.many("s0", "s1"), "padding": c.many("p0", "p1"), "dilation": c.many("d0", "d1")}


def steps_3d(c: Case) -> dict[str, tuple[float, ...]]:
    return {
        name: c.many(f"{s}0", f"{s}1", f"{s}2") for name, s in (("stride", "s"), ("padding", "p"), ("dilation", "d"))
    }


def keywords(*names: str, n: int) -> Callable[[Case], Tensor]:
    """Call the method with n sources by position, those behind by these names, and the parameters by theirs."""

    def call(c: Case) -> Tensor:
        more = dict(zip(names, c.s[n:], strict=False))
        params = c.named(*(p.name for p in OP_BY_NAME[c.op].params))
        return getattr(c.g, c.op.lower())(*c.s[:n], **more, **params)

    return call


def sum_rows(c: Case) -> Tensor:
    return c.g.sum_dim(*c.s, c.words[0]) if c.words[0] else c.g.sum_rows(*c.s)


def get_rows(c: Case) -> Tensor:
    if c.words[0] == 1:
        return c.g.gather(*c.s)
    return c.g.get_rows(*c.s, type=None if c.type in ("F32", "I32") else c.type)


def flash_attn(c: Case) -> Tensor:
    params = c.named(*(p.name for p in OP_BY_NAME[c.op].params))
    if len(c.s) == 6:
        q, k, v, mask, sinks, rows = c.s
        return c.g.flash_attn_rows(q, k, v, rows, mask=mask, sinks=sinks, **params)
    return c.g.flash_attn_ext(*c.s, **params)


def rope_cache(c: Case) -> Tensor:
    more = c.named(
        *("n_dims", "mode", "n_ctx_orig", "freq_base", "freq_scale"),
        *("ext_factor", "attn_factor", "beta_fast", "beta_slow"),
    )
    return c.g.rope_cache(*c.s, ne0=c.ne[0], **more)


def latent_attn(c: Case) -> Tensor:
    q, cache, prefix_k, prefix_v, mask, ids = c.s
    more = c.named("dv", "offset", "scale")
    return c.g.latent_attn(q, cache, prefix_k=prefix_k, prefix_v=prefix_v, mask=mask, ids=ids, **more)


def ds4_comp(c: Case) -> Tensor:
    rows = c.s[2].ne[0] // c.ne[1]
    return c.g.ds4_comp(*c.s, ratio=rows if c.kind else rows // 2, kind=c.kind)


CALLS: dict[str, Callable[[Case], Tensor]] = {
    o.name: same(o.name.lower()) for o in OPS if not o.pointer_params and not o.is_noop
}
CALLS |= {
    "ADD": lambda c: c.g.add(*c.s, type=None if c.type == c.s[0].type else c.type),
    "UNARY": unary,
    "GLU": glu,
    "ROPE": rope,
    "ROPE_BACK": rope,
    "SET_ROWS": set_rows,
    "GET_ROWS": get_rows,
    "GET_ROWS_BACK": lambda c: c.g.get_rows_back(*c.s, c.ne[1]),
    "CPY": cpy,
    "ACC": region,
    "SET": region,
    "SUM_ROWS": sum_rows,
    "SCALE": lambda c: c.g.scale(*c.s, c.scale, c.bias),
    "MUL_MAT_ID": lambda c: c.g.mul_mat_id(*c.s),
    "REPEAT": lambda c: c.g.repeat(*c.s, c.ne),
    "REPEAT_BACK": lambda c: c.g.repeat_back(*c.s, c.ne),
    "TOP_K": lambda c: c.g.top_k(*c.s, c.ne[0]),
    "PAD": lambda c: c.g.pad(
        *c.s, c.many("rp0", "rp1", "rp2", "rp3"), before=c.many("lp0", "lp1", "lp2", "lp3"), circular=bool(c.circular)
    ),
    "PAD_REFLECT_1D": lambda c: c.g.pad_reflect_1d(*c.s, c.p0, c.p1),
    "UPSCALE": lambda c: c.g.upscale(*c.s, c.ne, c.mode),
    "WIN_PART": lambda c: c.g.win_part(*c.s, c.window),
    "WIN_UNPART": lambda c: c.g.win_unpart(*c.s, c.ne[1], c.ne[2], c.window),
    "GET_REL_POS": lambda c: c.g.get_rel_pos(*c.s, c.ne[1]),
    "IM2COL": lambda c: c.g.im2col(*c.s, **steps_2d(c), is_2d=bool(c.is_2d), type=c.type),
    "IM2COL_BACK": lambda c: c.g.im2col_back(*c.s, c.ne, **steps_2d(c), is_2d=bool(c.is_2d)),
    "IM2COL_3D": lambda c: c.g.im2col_3d(*c.s, c.channels, **steps_3d(c), type=c.type),
    "COL2IM_1D": lambda c: c.g.col2im_1d(*c.s, c.channels, stride=c.s0, padding=c.p0),
    "CONV_2D": lambda c: c.g.conv_2d(*c.s, **steps_2d(c)),
    "CONV_2D_DW": lambda c: c.g.conv_2d_dw(*c.s, **steps_2d(c)),
    "CONV_3D": lambda c: c.g.conv_3d(*c.s, c.channels, **steps_3d(c)),
    "CONV_TRANSPOSE_1D": lambda c: c.g.conv_transpose_1d(*c.s, c.s0),
    "POOL_1D": lambda c: c.g.pool_1d(*c.s, c.kind, window=c.k0, stride=c.s0, padding=c.p0),
    "POOL_2D": lambda c: c.g.pool_2d(
        *c.s, c.kind, window=c.many("k0", "k1"), stride=c.many("s0", "s1"), padding=c.many("p0", "p1")
    ),
    "POOL_2D_BACK": lambda c: c.g.pool_2d_back(
        *c.s, c.kind, window=c.many("k0", "k1"), stride=c.many("s0", "s1"), padding=c.many("p0", "p1")
    ),
    "FLASH_ATTN_BACK": lambda c: c.g.flash_attn_back(*c.s, masked=bool(c.masked)),
    "SSM_SCAN": keywords("a", "b", "c", "ids", n=3),
    "RWKV_WKV6": keywords("tf", "td", "state", n=3),
    "RWKV_WKV7": keywords("a", "b", "state", n=4),
    "GATED_LINEAR_ATTN": keywords("state", n=4),
    "GATED_DELTA_NET": keywords("g", "beta", "state", n=3),
    "DELTA_NET": keywords("g", "beta", "state", "states", n=3),
    "IK_SSM_SCAN": keywords("a", "b", "c", "map", n=3),
    "MOE_FUSED_UP_GATE": keywords("up_bias", "gate_bias", n=4),
    "FLASH_ATTN_EXT": flash_attn,
    "ROPE_CACHE": rope_cache,
    "LATENT_ATTN": latent_attn,
    "DS4_COMP": ds4_comp,
    "INDEXER_TOPK": lambda c: c.g.indexer_topk(*c.s, kind=c.kind, n=c.ne[0]),
    "MASK_TO_IDX": lambda c: c.g.mask_to_idx(*c.s, c.ne[0]),
    "GROUPED_TOPK": lambda c: c.g.grouped_topk(*c.s, c.ne[0], **c.named("groups", "top_groups", "n_best")),
}


def leaf(t: wiretensor.Tensor) -> Tensor:
    return Tensor(t.type, t.ne, nb=t.nb, name=t.name)


# What parameters or sources make of an op of ik_llama.cpp.
OWN_NAMES = {("SUM_ROWS", "SUM_DIM"), ("GET_ROWS", "GATHER"), ("FLASH_ATTN_EXT", "FLASH_ATTN_ROWS")}


def build(example: Example) -> tuple[Tensor, wiretensor.Tensor, Graph]:
    """Build the example's subject by its op's method; return it and the example."""
    wanted = example.build(arena())
    sources = [None if s is None or s is wanted else leaf(s) for s in wanted.src]
    while sources and sources[-1] is None:
        sources.pop()
    g = Graph()
    words = struct.unpack("<16i", wanted.params.ljust(64, b"\0"))
    op = OP_BY_ID[wanted.op].name
    case = Case(g, sources, op, words, tuple(wanted.ne), TYPE_BY_ID[wanted.type].name)
    return CALLS[op](case), wanted, g


def meaningful(op: str, words: tuple[int, ...]) -> tuple[int, ...]:
    """Blank the words that only some kinds of an op read."""
    kept = list(words)
    if op == "UNARY" and words[0] != UnaryKind.XIELU:
        kept[1:5] = [0] * 4
    if op == "GLU" and words[0] != GluKind.SWIGLU_OAI:
        kept[2:4] = [0, words[3] if words[0] == GluKind.SWIGLU_CLAMP else 0]
    if op == "GET_ROWS":  # the word makes it a GATHER
        kept[0] = 0
    return tuple(kept)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
def test_a_method_makes_the_example(example: Example) -> None:
    made, wanted, g = build(example)
    assert g.nodes == [made]
    assert made.type_id == wanted.type
    assert made.ne == tuple(wanted.ne)
    assert made.nb == leaf(wanted).nb
    assert made.params == meaningful(example.op, struct.unpack("<16i", wanted.params.ljust(64, b"\0")))
    assert made.op == example.op or (example.op, made.op) in OWN_NAMES


def place(g: Graph, tensors: list[Tensor]) -> tuple[int, int, int]:
    """Let all tensors and the graph's results lie behind each other in one buffer, and return that."""
    buffer, at = Place(7, BASE, ROOM), 0
    for t in [*tensors, *g.nodes]:
        if t.view_src is None and t.place is None:
            t.put(buffer, at)
            at += -(-t.nbytes // 4096) * 4096
    return 7, BASE, ROOM


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.id)
def test_a_server_takes_the_node(example: Example) -> None:
    made, _, g = build(example)
    buffer = place(g, [s for s in made.src if s is not None])
    encoder = Encoder([example.dialect])
    checked = check_graph(encoder.codec, encoder.graph([made]), [buffer])
    (node,) = (checked.tensors[i] for i in checked.nodes)
    assert OP_BY_ID[node.op].name == made.op
    assert node.ne == made.ne
    assert node.nb == made.nb


def vector(n: int, type: str = "F32") -> Tensor:
    return Tensor(type, (n,))


def matrix(*ne: int, type: str = "F32") -> Tensor:
    return Tensor(type, ne)


# Ops that native rules refuse: a call, the result's type and shape, and parameter words.
UNCHECKED: dict[str, tuple[Callable[[Graph], Tensor], str, tuple[int, ...], tuple[float, ...]]] = {
    "REDUCE": (lambda g: g.reduce([matrix(8, 3), None, matrix(8, 3)]), "F32", (8, 3, 1, 1), (2, 3, 2)),
    "FAKE_CPY": (lambda g: g.fake_cpy(matrix(8, 3), matrix(4)), "F32", (8, 3, 1, 1), ()),
}


@pytest.mark.parametrize("op", UNCHECKED)
def test_ops_that_are_refused_here(op: str) -> None:
    call, type_, ne, params = UNCHECKED[op]
    g = Graph()
    t = call(g)
    words = struct.pack("<" + "".join("f" if isinstance(v, float) else "i" for v in params), *params)
    assert (t.op, t.type, t.ne) == (op, type_, ne)
    assert struct.pack("<16i", *t.params) == words.ljust(64, b"\0")
    assert t.view_src is not None


@pytest.mark.parametrize("op", UNCHECKED)
def test_ops_that_are_refused_here_can_be_sent(op: str) -> None:
    t = UNCHECKED[op][0](g := Graph())
    place(g, [s for s in t.src if s is not None])
    spoken = [e for e in map(Encoder, ([d] for d in dialects.DIALECTS)) if e.speaks(op)]
    assert spoken
    assert all(e.graph([t]) for e in spoken)


def declared() -> list[Op]:
    """Return every `Op` of the methods' modules."""
    found = []
    for module in MODULES:
        for value in vars(module).values():
            found += [v for v in (value.values() if isinstance(value, dict) else [value]) if isinstance(v, Op)]
    return found


def test_every_op_has_a_method_and_a_case() -> None:
    possible = {o.name for o in OPS if not o.pointer_params and o.name != "NONE"}
    kinds = {k.name.lower() for k in (*UnaryKind, *GluKind)}
    assert all(hasattr(Graph, name) for name in kinds)
    assert {name for name in possible if not hasattr(Graph, name.lower())} == {"UNARY", "GLU"}
    assert {op.name for op in declared()} == possible
    views = {o.name for o in OPS if o.is_noop}
    examples = {OP_BY_ID[e.build(arena()).op].name for e in EXAMPLES} | {name for _, name in OWN_NAMES}
    assert examples | set(UNCHECKED) | views - {"NONE"} >= possible
    assert not examples & set(UNCHECKED)


def test_ops_are_declared_with_rules_if_there_are_any() -> None:
    assert {op.name for op in declared() if not op.has_rules} == set(UNCHECKED)
    for call, *_ in UNCHECKED.values():
        with pytest.raises(GraphError, match="never accepted"):
            call(Graph()).check()
