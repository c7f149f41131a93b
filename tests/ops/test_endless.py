"""Parts of work that cannot be cancelled must be short: graphs that are one long part are refused.

All cases are legal by the rules of their ops, take less than 2^50 operations and little memory: sources repeat theirs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ggml_rpc.devices.cpu import CpuPool, levels
from ggml_rpc.errors import RpcError
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from ggml_rpc.wire._codec import Codec
from tests.graph.examples import IK_3_5, words
from tests.support.wiretensor import Arena, Tensor, graph_payload, tensor

POOL_MEAN = 1
ANTIALIAS = 512 | 1


def repeated(a: Arena, t: Tensor, item: int, nb0: int) -> Tensor:
    """Give a tensor `item` bytes of memory, which all its rows share."""
    t.nb = [nb0, 0, 0, 0]
    place = a.leaf("I8", (item,))
    t.buffer, t.data = place.buffer, place.data
    return t


def rows(a: Arena, type: str, *ne: int) -> Tensor:
    """Return a tensor whose rows are all the same one."""
    t = tensor(type, ne)
    return repeated(a, t, t.nb[1], t.nb[0])


def one(a: Arena, type: str, *ne: int) -> Tensor:
    """Return a tensor whose elements are all the same one."""
    return repeated(a, tensor(type, ne), 4, 0)


def pool_2d(a: Arena) -> Tensor:
    n = 1 << 15
    x = rows(a, "F32", n, n)
    return a.node("POOL_2D", "F32", (n + 1, 1), [x], params=words(POOL_MEAN, 2 * n, n, 1, 1, n, 0))


def pool_2d_back(a: Arena) -> Tensor:
    n, k0, k1 = 1024, 1 << 15, 1 << 14
    grad, x = rows(a, "F32", n + 1, n + 1), rows(a, "F32", n, n)
    params = words(POOL_MEAN, k0, k1, 1, 1, k0 // 2, k1 // 2)
    return a.node("POOL_2D_BACK", "F32", (n, n), [grad, x], params=params)


def grouped_topk(a: Arena) -> Tensor:
    n = 1 << 20
    return a.node("GROUPED_TOPK", "I32", (n // 2,), [rows(a, "F32", n)], params=words(1, 1, n // 2))


def top_k(a: Arena) -> Tensor:
    return a.node("TOP_K", "I32", (1, 1 << 20), [rows(a, "F32", 1 << 16, 1 << 20)])


def mul_mat_id(a: Arena) -> Tensor:
    k, tokens, slots, experts = 1 << 20, 1 << 10, 1 << 13, 1 << 10
    src = [rows(a, "Q8_0", k, 1, experts), rows(a, "F32", k, 1, tokens), one(a, "I32", slots, tokens)]
    return a.node("MUL_MAT_ID", "F32", (1, slots, tokens), src)


def moe_fused_up_gate(a: Arena) -> Tensor:
    k, tokens, slots, experts = 1 << 20, 1 << 10, 1 << 13, 1 << 10
    up, gate = rows(a, "Q8_0", k, 1, experts), rows(a, "Q8_0", k, 1, experts)
    src = [up, gate, rows(a, "F32", k, 1, tokens), one(a, "I32", slots, tokens)]
    return a.node("MOE_FUSED_UP_GATE", "F32", (1, slots, tokens), src, params=words(10, 0.0))


def ssm_conv(a: Arena) -> Tensor:
    """Every token's state is copied to all sequences."""
    tokens, sequences = 1 << 20, 1 << 16
    src = [a.leaf("F32", (1, 1, sequences)), a.leaf("F32", (1, tokens)), a.leaf("F32", (2, 1))]
    src.append(rows(a, "I32", sequences, tokens))
    return a.node("IK_SSM_CONV", "F32", (tokens + 2 * sequences,), src)


def ssm_scan(a: Arena) -> Tensor:
    tokens, sequences = 1 << 20, 1 << 16
    src = [a.leaf("F32", (1, 1, sequences)), a.leaf("F32", (1, tokens)), a.leaf("F32", (1, tokens))]
    src += [a.leaf("F32", (1, 1)), a.leaf("F32", (1, tokens)), a.leaf("F32", (1, tokens))]
    src.append(rows(a, "I32", sequences, tokens))
    return a.node("IK_SSM_SCAN", "F32", (tokens + sequences,), src)


def sinkhorn(a: Arena) -> Tensor:
    params = words(8, 2**31 - 1, 1e-6, 0)
    return a.node("SINKHORN", "F32", (8, 8, 1), [a.leaf("F32", (64, 1))], params=params)


def upscale(a: Arena) -> Tensor:
    return a.node("UPSCALE", "F32", (1, 1), [one(a, "F32", 1 << 18, 1 << 18)], params=words(ANTIALIAS))


def conv_2d_dw(a: Arena) -> Tensor:
    k = 1 << 18
    src = [one(a, "F32", k, k), a.leaf("F32", (1, 1))]
    return a.node("CONV_2D_DW", "F32", (2, 2), src, params=words(1, 1, k // 2, k // 2, 1, 1))


CASES: dict[str, Callable[[Arena], Tensor]] = {
    f.__name__: f
    for f in (
        *(pool_2d, pool_2d_back, grouped_topk, top_k, mul_mat_id, moe_fused_up_gate),
        *(ssm_conv, ssm_scan, sinkhorn, upscale, conv_2d_dw),
    )
}
IK = {"grouped_topk", "moe_fused_up_gate", "ssm_conv", "ssm_scan", "sinkhorn"}


@pytest.mark.parametrize("case", CASES)
def test_one_long_part_is_refused(case: str) -> None:
    dialect = IK_3_5 if case in IK else LLAMA_8_0
    device = CpuPool(2, levels()[0]).device()
    buffer = device.alloc(64 << 20)
    node = CASES[case](Arena(buffer.handle, buffer.base, buffer.size))
    with pytest.raises(RpcError, match="is too long"):
        device.compile(Codec(dialect), graph_payload(dialect, [node]), [buffer])
