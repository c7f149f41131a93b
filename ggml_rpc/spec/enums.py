"""Small enumerations that travel in op parameters and tensor flags, in internal numbers (those of 8.0.0)."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class UnaryKind(IntEnum):
    """Element-wise function of a UNARY node (parameter word 0)."""

    ABS = 0
    SGN = 1
    NEG = 2
    STEP = 3
    TANH = 4
    ELU = 5
    RELU = 6
    SIGMOID = 7
    GELU = 8
    GELU_QUICK = 9
    SILU = 10
    HARDSWISH = 11
    HARDSIGMOID = 12
    EXP = 13
    EXPM1 = 14
    SOFTPLUS = 15
    GELU_ERF = 16
    XIELU = 17
    FLOOR = 18
    CEIL = 19
    ROUND = 20
    TRUNC = 21
    SQRT_SOFTPLUS = 32  # this and the rest: ik_llama.cpp only
    SWIGLU = 33  # as an op of its own it is the GLU of that name; as the gate of a fused op it stays
    SWIGLU_OAI = 34


class GluKind(IntEnum):
    """Gate of a GLU node (parameter word 0)."""

    REGLU = 0
    GEGLU = 1
    SWIGLU = 2
    SWIGLU_OAI = 3
    GEGLU_ERF = 4
    GEGLU_QUICK = 5
    SWIGLU_CLAMP = 6


class Prec(IntEnum):
    """Accumulation or source precision that a client asks for; a hint, never a correctness matter."""

    DEFAULT = 0
    F32 = 10
    BF16 = 15
    F16 = 20
    Q8 = 30
    Q4 = 40


class PoolKind(IntEnum):
    """Reduction of POOL_1D and POOL_2D."""

    MAX = 0
    AVG = 1


class SortOrder(IntEnum):
    """Order of ARGSORT."""

    ASC = 0
    DESC = 1


class ScaleMode(IntEnum):
    """Interpolation of UPSCALE: the low byte of parameter word 0."""

    NEAREST = 0
    BILINEAR = 1
    BICUBIC = 2


class ScaleFlag(IntFlag):
    """Bits above the interpolation mode in UPSCALE's parameter word 0."""

    ALIGN_CORNERS = 256
    ANTIALIAS = 512


class TriKind(IntEnum):
    """Part of a square matrix that TRI keeps."""

    UPPER_DIAG = 0
    UPPER = 1
    LOWER_DIAG = 2
    LOWER = 3


class OpHint(IntEnum):
    """Hint in MUL_MAT's parameter word 1; an unknown hint counts as NONE."""

    NONE = 0
    SRC0_IS_HADAMARD = 1


class RopeMode(IntFlag):
    """Bits of ROPE's mode. VISION and IMROPE include the MROPE bit."""

    NORMAL = 0
    NEOX = 2
    MROPE = 8
    VISION = 24
    IMROPE = 40


class TensorFlag(IntFlag):
    """Bits of a tensor's `flags`. Those from 2^16 on are internal and never travel."""

    INPUT = 1
    OUTPUT = 2
    PARAM = 4
    LOSS = 8
    COMPUTE = 16
    ABSENT_ROWS_ARE_ZERO = 1 << 16  # an index out of range names a row of zeros (ik_llama.cpp), not an error
    LATER_EQUALS_FIRST = 1 << 17  # equal values are sorted by falling index (ik_llama.cpp's descending order)
    HEAP_SELECTED = 1 << 18  # the first values are those that a heap selects, equal ones too (ik_llama.cpp's router)
    BF16_SCALES = 1 << 19  # a product's activations are quantised with scales of bf16 (ik_llama.cpp)


class Status(IntEnum):
    """Outcome of a graph, as 2.0.0 and 3.0.0 send it in one signed byte."""

    ALLOC_FAILED = -2
    FAILED = -1
    SUCCESS = 0
    ABORTED = 1
