"""What an example is, and the words that the others are made of."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ggml_rpc.spec import dialects
from ggml_rpc.spec.dialects import DEFAULT as LLAMA_8_0
from ggml_rpc.spec.dialects import Dialect
from ggml_rpc.spec.ops import FIRST_IK_OP, OP_BY_NAME
from ggml_rpc.spec.types import TYPES
from tests.support.wiretensor import Arena, Tensor, tensor

RESULT = -1
FLOATS = frozenset({"F32", "F16", "BF16"})
HALF = frozenset({"F32", "F16"})
QUANTIZED = frozenset(t.name for t in TYPES if t.is_quantized)
INTERLEAVED = frozenset(t.name for t in TYPES if t.row_group > 1)
ONLY: frozenset[str] = frozenset()
NAN = float("nan")
INF = float("inf")
IK_3_5 = dialects.find("ik-3.5.2")

Fits = Callable[[int], bool]
Bad = Mapping[int, tuple[float, ...]]


@dataclass(frozen=True)
class Example:
    """A legal graph and the freedom that its op's rules leave.

    Parameters
    ----------
    op, name : str
        The subject's op, and what is special here.
    build : callable
        Place the tensors in an arena and return the subject.
    types : mapping of int to set of str
        Types that a slot may have instead, everything else as it is. Slots not named may have no other.
    sizes : mapping of (int, int) to callable
        Dimensions of a slot that may have other sizes, and which.
    strides : mapping of int to str
        What a slot's strides must be: "any", "rows" (elements of a row adjacent, the default), "even" (and rows at one
        distance), "whole" (contiguous).
    tied : tuple of int
        Slots that must be the very same place, type, shape and strides.
    optional : frozenset of int
        Sources that may be missing.
    bad : mapping of int to tuple
        Values that a parameter word must not have; a float stands for its bits.
    dialect : Dialect
        Whose graph it is: enumerations in its parameters are numbered so.
    """

    op: str
    name: str
    build: Callable[[Arena], Tensor]
    types: Mapping[int, frozenset[str]] = field(default_factory=dict)
    sizes: Mapping[tuple[int, int], Fits] = field(default_factory=dict)
    strides: Mapping[int, str] = field(default_factory=dict)
    tied: tuple[int, ...] = ()
    optional: frozenset[int] = frozenset()
    bad: Bad = field(default_factory=dict)
    dialect: Dialect = LLAMA_8_0

    @property
    def id(self) -> str:
        """Name for reports."""
        return f"{self.op}-{self.name}" if self.name else self.op


def words(*values: float) -> bytes:
    """Pack parameter words: ints as i32, floats as f32."""
    return b"".join(struct.pack("<f" if isinstance(v, float) else "<i", v) for v in values)


EXAMPLES: list[Example] = []


def add(op: str, name: str, build: Callable[[Arena], Tensor], **freedom: object) -> None:
    """Append an example."""
    if OP_BY_NAME[op].id >= FIRST_IK_OP:
        freedom.setdefault("dialect", IK_3_5)
    EXAMPLES.append(Example(op, name, build, **freedom))  # type: ignore[arg-type]


def simple(
    op: str,
    result: tuple[str, tuple[int, ...]],
    *sources: tuple[str, tuple[int, ...]] | None,
    params: bytes = b"",
    name: str = "",
    **freedom: object,
) -> None:
    """Append an example of contiguous tensors, each given by type and ne."""

    def build(a: Arena) -> Tensor:
        src = [None if s is None else a.leaf(s[0], s[1], f"source {i}") for i, s in enumerate(sources)]
        return a.node(op, result[0], result[1], src, params=params, name="subject")

    add(op, name, build, **freedom)


def at_least(n: int) -> Fits:
    return lambda m: m >= n


def into(n: int) -> Fits:
    """Sizes that repeat evenly into n."""
    return lambda m: m > 0 and n % m == 0


def multiple(n: int) -> Fits:
    """Sizes that n repeats evenly into: also none."""
    return lambda m: m % n == 0


ANY = at_least(1)
ANY_OR_NONE = at_least(0)
EPS = (-1.0, NAN, INF)


def arena(handle: int = 0xB0FFE, base: int = 0x7F00_0000_0000, size: int = 8 << 20) -> Arena:
    """Return an arena with room between tensors, so that one that grows a little meets no other."""
    a = Arena(handle, base, size, alignment=1 << 16)
    a.place(tensor("F32", (64,)))  # nothing of an example lies at the very start
    return a
