"""Graphs as a program builds them: names, devices, views, errors, and which nodes have an effect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggml_rpc.errors import CompileError, GraphError
from ggml_rpc.graph._encoder import Encoder
from ggml_rpc.graph._graph import check_graph
from ggml_rpc.graph._tensor import Place, Tensor
from ggml_rpc.graph.builder import Graph
from ggml_rpc.spec import dialects
from ggml_rpc.spec.enums import Prec, TensorFlag
from ggml_rpc.spec.ops import OP_BY_NAME


def f32(*ne: int, name: str = "x") -> Tensor:
    return Tensor("F32", ne, name=name)


def i32(*ne: int) -> Tensor:
    return Tensor("I32", ne)


# ---- The graph ----


def test_results_are_named_after_their_op_and_their_place() -> None:
    g = Graph()
    x = f32(8, 3)
    made = [g.add(x, x), g.silu(x), g.swiglu(x, x), g.cast(x, "F16"), g.mul_mat(x, x)]
    assert [t.name for t in made] == ["add-0", "silu-1", "swiglu-2", "cast-3", "mul_mat-4"]
    assert g.nodes == made
    made[0].name = "residual"
    assert g.output(made[1], "out") is made[1]
    assert [t.name for t in made[:2]] == ["residual", "out"]


def test_inputs_and_outputs_are_marked() -> None:
    g = Graph()
    ids = g.input("ids", "I32", (5,))
    assert g.inputs == {"ids": ids}
    assert ids.flags == TensorFlag.INPUT
    assert ids.op == "NONE"
    assert ids.place is None
    y = g.get_rows(f32(8, 9), ids)
    assert not y.is_output
    g.output(y)
    g.output(y)
    assert g.outputs == [y]
    assert y.is_output
    with pytest.raises(GraphError, match=r"there is an input 'ids' already: .*I32 \[5\]"):
        g.input("ids", "F32", (5,))
    with pytest.raises(GraphError, match="unknown tensor type 'F31'"):
        g.input("more", "F31", (5,))


def test_nodes_belong_to_the_device_around_them() -> None:
    g = Graph()
    x = f32(8)
    outside = g.neg(x)
    with g.on("a"):
        first, given_to_a = g.neg(x), g.input("i", "F32", (8,))
        with g.on("b"):
            inner = g.reshape(x, 4, 2)
        second = g.neg(x)
    assert [t.device for t in (outside, first, given_to_a, inner, second)] == [None, "a", "a", "b", "a"]
    with pytest.raises(RuntimeError), g.on("c"):
        raise RuntimeError
    assert g.neg(x).device is None


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda g: g.mul_mat(f32(8, 5), f32(8, 1)), (1, 5)),
        (lambda g: g.mul_mat(f32(8, 5), f32(8)), (5,)),
        (lambda g: g.get_rows(f32(8, 9), i32(1)), (1, 8)),
        (lambda g: g.add(f32(8, 1), f32(8)), (1, 8)),
        (lambda g: g.sum_rows(f32(8, 3)), (3, 1)),
        (lambda g: g.reshape(f32(8), 4, 2, 1), (1, 2, 4)),
        (lambda g: g.permute(f32(8, 1, 3), 0, 2, 1, 3), (1, 3, 8)),
        (lambda g: g.flash_attn_ext(f32(8, 1, 2), f32(8, 4, 2), f32(8, 4, 2), scale=1.0), (1, 2, 8)),
        (lambda g: g.top_k(f32(8, 1), 3), (1, 3)),
    ],
)
def test_shapes_have_the_dimensions_that_their_sources_suggest(call: Callable[[Graph], Tensor], shape) -> None:
    assert call(Graph()).shape == shape


def test_enumerations_go_by_name_number_or_member() -> None:
    g = Graph()
    x = f32(8, 3)
    made = [g.mul_mat(x, x, prec=p) for p in ("f32", 10, Prec.F32)]
    assert {t.params[0] for t in made} == {10}
    assert [g.argsort(x, order).params[0] for order in ("asc", "desc")] == [0, 1]
    assert g.upscale(x, (16, 6), "bilinear", antialias=True).params[0] == 1 | 512


# ---- What runs ----


def test_only_what_has_an_effect_is_reachable() -> None:
    g = Graph()
    x, cache = f32(8, 3), Tensor("F16", (8, 16))
    idle = g.neg(x)
    used = g.sqr(x)
    view = g.view(used, (8, 2), offset=32)
    rows = g.set_rows(cache, used, Tensor("I64", (3,)))
    copied = g.cpy(g.cast(used, "F16"), g.view(cache, (8, 3), offset=16 * 5))
    unread = g.scale(idle, 2.0)
    out = g.output(g.silu(view))
    late = g.abs(out)
    needed = [t for t in g.nodes if t not in (idle, unread, late)]
    assert g.reachable() == needed
    assert rows in needed
    assert copied in needed
    assert g.keep(late) is late
    assert g.reachable() == [*needed, late]


def test_writes_into_results_count_if_they_are_read_later() -> None:
    g = Graph()
    x = f32(8, 3)
    room = g.dup(x)
    before = g.sum(room)
    write = g.cpy(x, g.view(room, (8, 3)))
    after = g.sum(g.view(room, (8,)))
    useless = g.cpy(x, room)
    g.output(before)
    assert g.reachable() == [room, before]
    g.output(after)
    assert [t for t in g.nodes if t not in g.reachable()] == [useless]
    assert write in g.reachable()


def test_states_that_an_op_stores_count() -> None:
    g = Graph()
    states = f32(3 * 8 * 5)
    conv = g.ik_ssm_conv(f32(3, 8, 1), f32(8, 5), f32(4, 8), i32(1, 5), states)
    g.ik_ssm_conv(f32(3, 8, 1), f32(8, 5), f32(4, 8), i32(1, 5))
    assert g.reachable() == [conv]


# ---- Views ----


@st.composite
def looks(draw: st.DrawFn) -> tuple[Tensor, np.ndarray]:
    """Draw a tensor that looks at a leaf through several views, and NumPy's idea of it."""
    ne = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    size = int(np.prod(ne))
    g, t = Graph(), f32(*ne)
    a = np.arange(size, dtype=np.float32).reshape(t.ne[::-1])
    for _ in range(draw(st.integers(0, 6))):
        match draw(st.sampled_from(["permute", "transpose", "reshape", "view"])):
            case "permute":
                axes = draw(st.permutations(range(4)))
                t = g.permute(t, *axes)
                a = np.moveaxis(a, [3 - i for i in range(4)], [3 - axis for axis in axes])
            case "transpose":
                t, a = g.transpose(t), a.swapaxes(2, 3)
            case "reshape":
                shape = _factors(draw, a.size)
                if t.is_contiguous:
                    t, a = g.reshape(t, *shape), a.reshape(shape[::-1])
                else:
                    with pytest.raises(GraphError, match="use cont first"):
                        g.reshape(t, *shape)
            case _ if t.nb[0] == 4:
                cuts = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in t.ne]
                offset = sum(lo * nb for (lo, _), nb in zip(cuts, t.nb, strict=True))
                t = g.view(t, [hi - lo + 1 for lo, hi in cuts], nb=t.nb[1:], offset=offset)
                a = a[tuple(slice(lo, hi + 1) for lo, hi in reversed(cuts))]
    return t, a


def _factors(draw: st.DrawFn, n: int) -> list[int]:
    shape = []
    for _ in range(3):
        shape.append(draw(st.sampled_from([d for d in range(1, n + 1) if n % d == 0])))
        n //= shape[-1]
    return [*shape, n]


@given(looks())
def test_views_look_where_numpy_does(look: tuple[Tensor, np.ndarray]) -> None:
    t, a = look
    root = t if t.view_src is None else t.view_src
    memory = np.arange(root.n_elements, dtype=np.float32)
    seen = np.ndarray(t.ne[::-1], np.float32, memory.data, t.view_offs, t.nb[::-1])
    np.testing.assert_array_equal(seen, a)
    assert t.is_contiguous == a.flags.c_contiguous
    assert root.op == "NONE"


def test_strides_of_views_follow_without_gaps_where_none_are_given() -> None:
    g = Graph()
    x = Tensor("Q8_0", (64, 6, 4))
    assert g.view(x, (64, 3, 2)).nb == (34, 68, 204, 408)
    assert g.view(x, (32, 3, 2), nb=(136,)).nb == (34, 136, 408, 816)
    assert g.view(x, (32, 3, 2), nb=(136, 408)).nb == (34, 136, 408, 816)
    v = g.view(x, (32,), offset=34)
    assert (v.view_offs, v.shape, v.params[0]) == (34, (32,), 34)
    again = g.view(g.view(x, (64, 3), offset=68), (64,), offset=136)
    assert (again.view_src, again.view_offs, again.params[0]) == (x, 204, 136)


# ---- What is refused ----

ERRORS: dict[str, tuple[Callable[[Graph], object], str]] = {
    "shapes": (
        lambda g: g.add(f32(8, 3), f32(5)),
        r"tensor 'add-0': op ADD: source 1 must repeat evenly into source 0 \(a is F32 \[8, 3, 1, 1\], b is F32 \[5, ",
    ),
    "types": (lambda g: g.mul(f32(8), i32(8)), r"tensor 'mul-0': op MUL: sources and result must be F32, F16 or BF16 "),
    "indices": (
        lambda g: g.get_rows(f32(8, 3), f32(2)),
        r"'get_rows-0': op GET_ROWS: source 1 \(indices\) must be I32",
    ),
    "mul_mat": (
        lambda g: g.mul_mat(f32(8, 3), f32(7, 3)),
        r"op MUL_MAT: rows of .* same length \(a is F32 \[8, 3, 1, 1\], b is F32 \[7, 3, 1, 1\]",
    ),
    "strides": (
        lambda g: g.rms_norm(g.transpose(f32(8, 3)), 1e-5),
        "'rms_norm-1': op RMS_NORM: rows of the source must be contiguous",
    ),
    "eps": (lambda g: g.rms_norm(f32(8), -1.0), r"op RMS_NORM: parameter 0 \(eps\) must be finite and not negative"),
    "nan": (lambda g: g.soft_max(f32(8), scale=float("nan")), r"parameter 0 \(scale\) must be finite"),
    "too large": (
        lambda g: g.scale(f32(8), 1e39),
        r"'scale-0': op SCALE: scale must be a number within F32, not 1e\+39",
    ),
    "no number": (lambda g: g.clamp(f32(8), 0.0, "1"), "op CLAMP: max must be a number within F32, not '1'"),
    "no whole number": (lambda g: g.roll(f32(8), 0.5), "op ROLL: shift0 must be a whole number of 32 bits, not 0.5"),
    "dim": (lambda g: g.concat(f32(8), f32(8), 4), "op CONCAT: dim must be 0 to 3, not 4"),
    "enumeration": (
        lambda g: g.mul_mat(f32(8), f32(8), prec="f8"),
        "op MUL_MAT: prec must be one of default, f32, bf16",
    ),
    "order": (lambda g: g.argsort(f32(8), 2), r"op ARGSORT: parameter 0 \(order\) must be 0"),
    "upscale": (
        lambda g: g.upscale(f32(8), (9,), "best"),
        "op UPSCALE: mode must be one of nearest, bilinear, bicubic",
    ),
    "type name": (lambda g: g.cast(f32(8), "F8"), "unknown tensor type 'F8'; known are F32, F16"),
    "cast": (lambda g: g.cast(i32(8), "F16"), "'cast-0': op CPY: no copy converts between these types"),
    "blocks": (
        lambda g: g.cast(f32(33), "Q8_0"),
        "'cast-0': rows of 33 elements are no whole number of blocks of Q8_0",
    ),
    "cpy": (lambda g: g.cpy(f32(8), f32(9)), "op CPY: the result must have as many elements as source 0"),
    "set_rows": (
        lambda g: g.set_rows(f32(8, 9), f32(8, 2), i32(3)),
        "op SET_ROWS: source 1 must have an index for each row of source 0",
    ),
    "reshape": (lambda g: g.reshape(f32(8), 3, 3), r"'reshape-0': op RESHAPE: \[3, 3\] has not the 8 elements"),
    "reshape gaps": (lambda g: g.reshape(g.transpose(f32(8, 3)), 24), "'reshape-1': op RESHAPE: .* use cont first"),
    "reshape to nothing": (lambda g: g.reshape(f32(8)), r"op RESHAPE: shape \[\]: 1 to 4 sizes"),
    "permute": (lambda g: g.permute(f32(8), 0, 1, 1, 3), r"op PERMUTE: axes \[0, 1, 1, 3\]: each of 0 to 3 must occur"),
    "permuted blocks": (
        lambda g: g.transpose(Tensor("Q8_0", (64, 32))),
        "'transpose-0': op TRANSPOSE: the blocks of Q8_0 lie along dimension 0, which must stay",
    ),
    "interleaved rows": (
        lambda g: g.permute(Tensor("Q4_0_R8", (64, 8, 2)), 0, 2, 1, 3),
        "op PERMUTE: the rows of Q4_0_R8 are interleaved: dimension 1 must stay",
    ),
    "view": (lambda g: g.view(f32(8), (8,), offset=4), "'view-0': a view of 32 bytes at offset 4 leaves 'x'"),
    "view before": (lambda g: g.view(f32(8), (4,), offset=-4), "op VIEW: the offset must not be negative, but is -4"),
    "view across": (lambda g: g.view(f32(8), (4,), offset=2), "offset 2 is no multiple of the 4 bytes of F32"),
    "view strides": (lambda g: g.view(f32(8, 2), (4, 2), nb=(30,)), "stride 1 is 30 bytes; elements of F32 take 4"),
    "view blocks": (
        lambda g: g.view(Tensor("Q8_0", (64,)), (40,)),
        "op VIEW: rows of 40 are no whole number of blocks",
    ),
    "too many strides": (lambda g: g.view(f32(8), (8,), nb=(1, 2, 3, 4)), "op VIEW: nb = .* at most three strides"),
    "region": (lambda g: g.acc(f32(8), f32(4), (32,)), r"op ACC: nb = \[32\]: three strides are needed"),
    "sections": (lambda g: g.rope(f32(8), i32(1), n_dims=8, sections=(1, 2)), r"op ROPE: sections \[1, 2\]: four"),
    "rope": (
        lambda g: g.rope(f32(8, 1, 3), i32(2), n_dims=8),
        "op ROPE: source 1 must have the positions of each token",
    ),
    "mask": (
        lambda g: g.soft_max(f32(8, 3), f32(8, 2)),
        r"op SOFT_MAX: the mask must have a row for each token \(x is .*, mask is F32 \[8, 2, 1, 1\]",
    ),
    "kernel": (
        lambda g: g.conv_2d(f32(9, 9, 1, 1), f32(8, 8)),
        r"'conv_2d-0': op CONV_2D: 9 taps \(dilation 1\) must fit in 8 elements",
    ),
    "stride": (lambda g: g.pool_1d(f32(8), window=2, stride=0), "op POOL_1D: stride and dilation must be positive"),
    "window": (lambda g: g.win_part(f32(8, 4, 4), 0), "op WIN_PART: the window must be positive, not 0"),
    "range": (lambda g: g.arange(1.0, 1.0), "op ARANGE: the range 1.0 to 1.0 by 1.0 must be finite and grow"),
    "long range": (lambda g: g.arange(0.0, 1e30), r"op ARANGE: .* more than 2\^31 numbers"),
    "padding": (lambda g: g.pad(f32(8), (-1,)), r"op PAD: parameters 0 to 7 \(padding\) must not be negative"),
    "five dimensions": (lambda g: g.pad(f32(8), (0,) * 5), "op PAD: there are four dimensions"),
    "channels": (lambda g: g.col2im_1d(f32(8, 2), 0), "op COL2IM_1D: channels must be positive, not 0"),
    "top_k": (lambda g: g.top_k(f32(8), 9), "op TOP_K: no more elements can be asked for than a row has"),
    "glu": (lambda g: g.swiglu(f32(7)), "op GLU: rows that hold gate and value must have an even length"),
    "parts": (lambda g: g.reduce([f32(8)]), "'reduce-0': op REDUCE: 2 to 16 parts are needed"),
    "loss": (lambda g: g.cross_entropy_loss(f32(8), f32(9)), "op CROSS_ENTROPY_LOSS: both sources must have one shape"),
    "one row too many": (
        lambda g: g.multi_add(g.view(f32(8, 3), (8, 1), offset=32), 3),
        "op MULTI_ADD: all rows must lie in the tensor that the source views",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_tensor_the_op_and_the_rule(name: str) -> None:
    call, pattern = ERRORS[name]
    g = Graph()
    with pytest.raises(GraphError, match=pattern):
        call(g)
    assert all(t.op in ("VIEW", "TRANSPOSE") for t in g.nodes)


# ---- ik_llama.cpp's forms ----

IK = dialects.find("ik-3.5.2")


def sent(t: Tensor, *sources: Tensor) -> tuple[str, list[int]]:
    """Return the op that a peer of ik_llama.cpp reads of a node, and its parameters on the wire."""
    buffer = Place(1, 4096, 1 << 20)
    for i, s in enumerate((*sources, t)):
        s.put(buffer, 4096 * i)
    encoder = Encoder([IK])
    checked = check_graph(encoder.codec, encoder.graph([t]), [(1, 4096, 1 << 20)])
    at = IK.record.offsets["op_params"]
    words = np.frombuffer(encoder.node(t)[at : at + 16], "<i4").tolist()
    (name,) = (o for o, spec in OP_BY_NAME.items() if spec.id == checked.tensors[checked.nodes[0]].op)
    return name, words


def test_sums_along_other_dimensions_reach_ik() -> None:
    x = f32(8, 4, 3)
    assert sent(Graph().sum_dim(x, 2), x) == ("SUM_DIM", [2, 0, 0, 0])
    assert not Encoder([dialects.DEFAULT]).speaks("SUM_DIM")


def test_ik_is_told_how_many_values_to_sort() -> None:
    x = f32(8, 4)
    assert sent(Graph().argsort(x), x) == ("ARGSORT", [1, 8, 0, 0])


def test_elements_by_index_are_rows_with_a_flag() -> None:
    x, ids = f32(8, 4), i32(2, 4)
    t = Graph().gather(x, ids)
    at = IK.record.offsets["op_params"]
    assert Encoder([IK]).node(t)[at] == 1


def test_padding_that_ik_cannot_express_is_refused() -> None:
    x = f32(8, 4)
    name, _ = sent(Graph().pad(x, (1, 2)), x)
    assert name == "PAD"
    with pytest.raises(CompileError, match=r"PAD: dialect ik-3\.5\.2.* appends zeros"):
        Encoder([IK]).node(Graph().pad(x, (1,), before=(1,)))
