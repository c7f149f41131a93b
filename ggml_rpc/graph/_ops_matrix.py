"""Methods of `Graph` for products, and for rows that indices name."""

from __future__ import annotations

from ggml_rpc.spec.enums import OpHint, Prec, TensorFlag

from ._node import F32, I32, Nodes, Op, type_id
from ._tensor import Tensor

_MUL_MAT = Op("MUL_MAT", "prec hint prec_src1")
_MUL_MAT_ID = Op("MUL_MAT_ID", "prec prec_src1")
_OUT_PROD, _SOLVE_TRI = Op("OUT_PROD"), Op("SOLVE_TRI")
_GET_ROWS, _GET_ROWS_BACK, _SET_ROWS = Op("GET_ROWS"), Op("GET_ROWS_BACK"), Op("SET_ROWS")


class MatrixOps(Nodes):
    """Products, and rows by index."""

    # ---- Products ----

    def mul_mat(
        self,
        a: Tensor,
        b: Tensor,
        *,
        prec: str | int = Prec.DEFAULT,
        hint: str | int = OpHint.NONE,
        prec_src1: str | int = Prec.DEFAULT,
    ) -> Tensor:
        """Multiply: every row of `b` with every row of `a`.

        Parameters
        ----------
        a : Tensor
            [k, m, ...], any type that holds floats; the weights. Repeated over dimensions 2 and 3 of `b`.
        b : Tensor
            [k, n, ...]; the activations.
        prec, prec_src1 : str or int
            How exactly to add up, and to hold `b`: a wish, one of `Prec`.
        hint : str or int
            What the peer may know of `a`, one of `OpHint`.

        Returns
        -------
        Tensor
            [m, n, ...] F32.
        """
        _, n, ne2, ne3 = b.ne
        return self._add(_MUL_MAT, F32, (a.ne[1], n, ne2, ne3), (a, b), (prec, hint, prec_src1), dims=b.n_dims)

    def mul_mat_id(
        self,
        as_: Tensor,
        b: Tensor,
        ids: Tensor,
        *,
        prec: str | int = Prec.DEFAULT,
        prec_src1: str | int = Prec.DEFAULT,
    ) -> Tensor:
        """Multiply the rows of each token with the matrices (experts) that it names.

        Parameters
        ----------
        as_ : Tensor
            [k, m, n_expert].
        b : Tensor
            [k, 1 or n_used, n_tokens] F32.
        ids : Tensor
            [n_used, n_tokens] I32.
        prec, prec_src1 : str or int
            As for `mul_mat`.

        Returns
        -------
        Tensor
            [m, n_used, n_tokens] F32.
        """
        ne = (as_.ne[1], ids.ne[0], b.ne[2], 1)
        return self._add(_MUL_MAT_ID, F32, ne, (as_, b, ids), (prec, prec_src1), dims=3)

    def out_prod(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum the outer products of the rows of `a` [m, k] and `b` [n, k]; the result is [m, n] F32."""
        n, _, ne2, ne3 = b.ne
        return self._add(_OUT_PROD, F32, (a.ne[0], n, ne2, ne3), (a, b), dims=max(2, b.n_dims))

    def solve_tri(self, a: Tensor, b: Tensor) -> Tensor:
        """Solve `a @ x = b` for lower triangular `a` [n, n] and `b` [m, n] (F32): x in the shape of `b`."""
        return self._like(_SOLVE_TRI, b, (a, b))

    # ---- Rows by index ----

    def get_rows(self, a: Tensor, ids: Tensor, *, type: str | None = None) -> Tensor:
        """Fetch rows.

        Parameters
        ----------
        a : Tensor
            [k, n, ...], any type that holds floats, or I32.
        ids : Tensor
            [m, ...] I32: which rows; a list for each matrix of `a`.
        type : str, optional
            The result's if rows are to be fetched as they are, which ik_llama.cpp alone does: that of `a`.

        Returns
        -------
        Tensor
            [k, m, ...] F32, or I32 where `a` is.
        """
        m, ne2, ne3, _ = ids.ne
        result, flags = (I32 if a.type_id == I32 else F32), 0
        if type is not None:
            result, flags = type_id(type), TensorFlag.ABSENT_ROWS_ARE_ZERO
        return self._add(_GET_ROWS, result, (a.ne[0], m, ne2, ne3), (a, ids), dims=1 + ids.n_dims, flags=flags)

    def set_rows(self, dst: Tensor, values: Tensor, ids: Tensor) -> Tensor:
        """Put rows into `dst`.

        Parameters
        ----------
        dst : Tensor
            [k, n, ...], any type that holds floats; changed.
        values : Tensor
            [k, m, ...] F32 or F16; converted.
        ids : Tensor
            [m, ...] I64 or I32: to which rows.

        Returns
        -------
        Tensor
            A view of `dst`.
        """
        return self._into(_SET_ROWS, dst, (values, ids, dst))

    def get_rows_back(self, grad: Tensor, ids: Tensor, n_rows: int) -> Tensor:
        """Add the rows of `grad` [k, m] to the rows that `ids` [m] I32 names of a result [k, n_rows] F32 of zeros."""
        return self._add(_GET_ROWS_BACK, F32, (grad.ne[0], n_rows, 1, 1), (grad, ids), dims=2)
