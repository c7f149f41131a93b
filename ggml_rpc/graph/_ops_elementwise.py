"""Methods of `Graph` for ops that compute each element from those at its place."""

from __future__ import annotations

from ggml_rpc.spec.enums import GluKind, UnaryKind

from ._node import Nodes, Op, type_id
from ._tensor import Tensor

_ADD, _SUB, _MUL, _DIV = Op("ADD"), Op("SUB"), Op("MUL"), Op("DIV")
_ADD1, _ADD_ID = Op("ADD1"), Op("ADD_ID")
_SQR, _SQRT, _LOG, _SIN, _COS = Op("SQR"), Op("SQRT"), Op("LOG"), Op("SIN"), Op("COS")
_SCALE = Op("SCALE", "scale bias")
_CLAMP = Op("CLAMP", "min max")
_FILL = Op("FILL", "value")
_LEAKY_RELU = Op("LEAKY_RELU", "negative_slope")
_UNARY = {kind: Op("UNARY", "kind", label=kind.name.lower()) for kind in UnaryKind}
_XIELU = Op("UNARY", "kind alpha_n alpha_p beta eps", label="xielu")
_GLU = {kind: Op("GLU", "kind swapped", label=kind.name.lower()) for kind in GluKind}
_SWIGLU_OAI = Op("GLU", "kind swapped alpha limit", label="swiglu_oai")
_SWIGLU_CLAMP = Op("GLU", "kind swapped limit", label="swiglu_clamp")


class ElementwiseOps(Nodes):
    """Arithmetic, activations and gates. Results have the shape and type of `x` or `a` unless a method says more."""

    # ---- Two tensors; b is repeated to fill a ----

    def add(self, a: Tensor, b: Tensor, *, type: str | None = None) -> Tensor:
        """Add `b`, repeated as often as it fits; `type` is the result's if it is to be another than that of `a`."""
        if type is None:
            return self._like(_ADD, a, (a, b))
        return self._add(_ADD, type_id(type), a.ne, (a, b), dims=a.n_dims)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        """Subtract `b`, repeated as often as it fits."""
        return self._like(_SUB, a, (a, b))

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply by `b`, repeated as often as it fits."""
        return self._like(_MUL, a, (a, b))

    def div(self, a: Tensor, b: Tensor) -> Tensor:
        """Divide by `b`, repeated as often as it fits."""
        return self._like(_DIV, a, (a, b))

    def add1(self, a: Tensor, b: Tensor) -> Tensor:
        """Add the one element of `b`."""
        return self._like(_ADD1, a, (a, b))

    def add_id(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        """Add to row [i, t] of `a` the row of `b` that `ids` [i, t] (I32) names."""
        return self._like(_ADD_ID, a, (a, b, ids))

    # ---- Functions with an op of their own ----

    def sqr(self, x: Tensor) -> Tensor:
        """Square."""
        return self._like(_SQR, x, (x,))

    def sqrt(self, x: Tensor) -> Tensor:
        """Take the square root."""
        return self._like(_SQRT, x, (x,))

    def log(self, x: Tensor) -> Tensor:
        """Take the natural logarithm."""
        return self._like(_LOG, x, (x,))

    def sin(self, x: Tensor) -> Tensor:
        """Take the sine."""
        return self._like(_SIN, x, (x,))

    def cos(self, x: Tensor) -> Tensor:
        """Take the cosine."""
        return self._like(_COS, x, (x,))

    def scale(self, x: Tensor, s: float, bias: float = 0.0) -> Tensor:
        """Compute `s * x + bias`."""
        return self._like(_SCALE, x, (x,), (s, bias))

    def clamp(self, x: Tensor, min: float, max: float) -> Tensor:
        """Bring elements into `min` to `max`."""
        return self._like(_CLAMP, x, (x,), (min, max))

    def fill(self, x: Tensor, value: float) -> Tensor:
        """Make a tensor like `x` of one value."""
        return self._like(_FILL, x, (x,), (value,))

    def leaky_relu(self, x: Tensor, negative_slope: float) -> Tensor:
        """Multiply negative elements by `negative_slope`."""
        return self._like(_LEAKY_RELU, x, (x,), (negative_slope,))

    # ---- Kinds of UNARY ----

    def _unary(self, kind: UnaryKind, x: Tensor) -> Tensor:
        return self._like(_UNARY[kind], x, (x,), (kind,))

    def abs(self, x: Tensor) -> Tensor:
        """Take the absolute value."""
        return self._unary(UnaryKind.ABS, x)

    def sgn(self, x: Tensor) -> Tensor:
        """Take the sign: -1, 0 or 1."""
        return self._unary(UnaryKind.SGN, x)

    def neg(self, x: Tensor) -> Tensor:
        """Change the sign."""
        return self._unary(UnaryKind.NEG, x)

    def step(self, x: Tensor) -> Tensor:
        """Put 1 for positive elements, 0 for others."""
        return self._unary(UnaryKind.STEP, x)

    def tanh(self, x: Tensor) -> Tensor:
        """Take the hyperbolic tangent."""
        return self._unary(UnaryKind.TANH, x)

    def elu(self, x: Tensor) -> Tensor:
        """Take `exp(x) - 1` of negative elements."""
        return self._unary(UnaryKind.ELU, x)

    def relu(self, x: Tensor) -> Tensor:
        """Put 0 for negative elements."""
        return self._unary(UnaryKind.RELU, x)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Compute `1 / (1 + exp(-x))`."""
        return self._unary(UnaryKind.SIGMOID, x)

    def gelu(self, x: Tensor) -> Tensor:
        """Apply GELU by its approximation with a hyperbolic tangent."""
        return self._unary(UnaryKind.GELU, x)

    def gelu_quick(self, x: Tensor) -> Tensor:
        """Apply GELU by its approximation with a sigmoid."""
        return self._unary(UnaryKind.GELU_QUICK, x)

    def gelu_erf(self, x: Tensor) -> Tensor:
        """Apply GELU by the error function."""
        return self._unary(UnaryKind.GELU_ERF, x)

    def silu(self, x: Tensor) -> Tensor:
        """Compute `x * sigmoid(x)`."""
        return self._unary(UnaryKind.SILU, x)

    def hardswish(self, x: Tensor) -> Tensor:
        """Compute `x * hardsigmoid(x)`."""
        return self._unary(UnaryKind.HARDSWISH, x)

    def hardsigmoid(self, x: Tensor) -> Tensor:
        """Bring `(x + 3) / 6` into 0 to 1."""
        return self._unary(UnaryKind.HARDSIGMOID, x)

    def exp(self, x: Tensor) -> Tensor:
        """Take the exponential."""
        return self._unary(UnaryKind.EXP, x)

    def expm1(self, x: Tensor) -> Tensor:
        """Compute `exp(x) - 1`."""
        return self._unary(UnaryKind.EXPM1, x)

    def softplus(self, x: Tensor) -> Tensor:
        """Compute `log(1 + exp(x))`."""
        return self._unary(UnaryKind.SOFTPLUS, x)

    def floor(self, x: Tensor) -> Tensor:
        """Round down."""
        return self._unary(UnaryKind.FLOOR, x)

    def ceil(self, x: Tensor) -> Tensor:
        """Round up."""
        return self._unary(UnaryKind.CEIL, x)

    def round(self, x: Tensor) -> Tensor:
        """Round to the nearest whole number, halves away from 0."""
        return self._unary(UnaryKind.ROUND, x)

    def trunc(self, x: Tensor) -> Tensor:
        """Round towards 0."""
        return self._unary(UnaryKind.TRUNC, x)

    def sqrt_softplus(self, x: Tensor) -> Tensor:
        """Take the square root of softplus (ik_llama.cpp only)."""
        return self._unary(UnaryKind.SQRT_SOFTPLUS, x)

    def xielu(self, x: Tensor, alpha_n: float, alpha_p: float, beta: float, eps: float) -> Tensor:
        """Apply xIELU with the factors as the op takes them: `alpha_n` with beta in it, both behind softplus."""
        return self._like(_XIELU, x, (x,), (UnaryKind.XIELU, alpha_n, alpha_p, beta, eps))

    # ---- Kinds of GLU ----

    def _glu(self, op: Op, gate: Tensor, up: Tensor | None, values: tuple[float, ...]) -> Tensor:
        if up is not None:
            return self._like(op, gate, (gate, up), values)
        n, ne1, ne2, ne3 = gate.ne
        return self._add(op, gate.type_id, (n // 2, ne1, ne2, ne3), (gate,), values, dims=gate.n_dims)

    def reglu(self, gate: Tensor, up: Tensor | None = None, *, swapped: bool = False) -> Tensor:
        """Multiply `relu(gate)` by `up`.

        Without `up` the first half of each row of `gate` is the gate and the second is what it is multiplied by
        (`swapped`: the other way round); the result has half of each row.
        """
        return self._glu(_GLU[GluKind.REGLU], gate, up, (GluKind.REGLU, swapped))

    def geglu(self, gate: Tensor, up: Tensor | None = None, *, swapped: bool = False) -> Tensor:
        """Multiply `gelu(gate)` by `up`, or halves of rows as `reglu` does."""
        return self._glu(_GLU[GluKind.GEGLU], gate, up, (GluKind.GEGLU, swapped))

    def swiglu(self, gate: Tensor, up: Tensor | None = None, *, swapped: bool = False) -> Tensor:
        """Multiply `silu(gate)` by `up`, or halves of rows as `reglu` does."""
        return self._glu(_GLU[GluKind.SWIGLU], gate, up, (GluKind.SWIGLU, swapped))

    def geglu_erf(self, gate: Tensor, up: Tensor | None = None, *, swapped: bool = False) -> Tensor:
        """Multiply `gelu_erf(gate)` by `up`, or halves of rows as `reglu` does."""
        return self._glu(_GLU[GluKind.GEGLU_ERF], gate, up, (GluKind.GEGLU_ERF, swapped))

    def geglu_quick(self, gate: Tensor, up: Tensor | None = None, *, swapped: bool = False) -> Tensor:
        """Multiply `gelu_quick(gate)` by `up`, or halves of rows as `reglu` does."""
        return self._glu(_GLU[GluKind.GEGLU_QUICK], gate, up, (GluKind.GEGLU_QUICK, swapped))

    def swiglu_oai(self, gate: Tensor, up: Tensor | None = None, *, alpha: float, limit: float) -> Tensor:
        """Multiply `g * sigmoid(alpha * g)` by `1 + u`, with `g` at most `limit` and `u` within -limit to limit."""
        return self._glu(_SWIGLU_OAI, gate, up, (GluKind.SWIGLU_OAI, 0, alpha, limit))

    def swiglu_clamp(self, gate: Tensor, up: Tensor | None = None, *, limit: float) -> Tensor:
        """Multiply `silu(g)` by `u`, with `g` at most `limit` and `u` within -limit to limit."""
        return self._glu(_SWIGLU_CLAMP, gate, up, (GluKind.SWIGLU_CLAMP, 0, limit))
