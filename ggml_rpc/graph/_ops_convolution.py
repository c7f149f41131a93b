"""Methods of `Graph` for convolutions and pooling."""

from __future__ import annotations

from ggml_rpc.spec.enums import PoolKind

from ._node import F32, Nodes, Op, type_id
from ._tensor import Tensor

_IM2COL = Op("IM2COL", "s0 s1 p0 p1 d0 d1 is_2d")
_IM2COL_BACK = Op("IM2COL_BACK", "s0 s1 p0 p1 d0 d1 is_2d")
_IM2COL_3D = Op("IM2COL_3D", "s0 s1 s2 p0 p1 p2 d0 d1 d2 channels")
_COL2IM_1D = Op("COL2IM_1D", "s0 channels p0")
_CONV_2D, _CONV_2D_DW = Op("CONV_2D", "s0 s1 p0 p1 d0 d1"), Op("CONV_2D_DW", "s0 s1 p0 p1 d0 d1")
_CONV_3D = Op("CONV_3D", "s0 s1 s2 p0 p1 p2 d0 d1 d2 channels batch channels_out")
_CONV_TRANSPOSE_1D, _CONV_TRANSPOSE_2D = Op("CONV_TRANSPOSE_1D", "s0 p0 d0"), Op("CONV_TRANSPOSE_2D", "stride")
_POOL_1D = Op("POOL_1D", "kind k0 s0 p0")
_POOL_2D = Op("POOL_2D", "kind k0 k1 s0 s1 p0 p1")
_POOL_2D_BACK = Op("POOL_2D_BACK", "kind k0 k1 s0 s1 p0 p1")

Two = tuple[int, int]
Three = tuple[int, int, int]


class ConvolutionOps(Nodes):
    """Convolutions and pooling. Images are [width, height, channels, n]; pairs are (across, down)."""

    def _places(self, op: Op, n: int, k: int, *, stride: int, padding: int, dilation: int = 1) -> int:
        """Return how often a window of `k` taps fits over `n` elements."""
        if stride <= 0 or dilation <= 0 or padding < 0:
            raise self._broken(op, "stride and dilation must be positive, padding not negative")
        room = n + 2 * padding - dilation * (k - 1) - 1
        if room < 0 or k <= 0:
            raise self._broken(op, f"{k} taps (dilation {dilation}) must fit in {n} elements and padding {padding}")
        return room // stride + 1

    def im2col(
        self,
        kernel: Tensor,
        x: Tensor,
        *,
        stride: Two = (1, 1),
        padding: Two = (0, 0),
        dilation: Two = (1, 1),
        is_2d: bool = True,
        type: str = "F16",
    ) -> Tensor:
        """Write out the elements under the kernel at each of its places, so that a product does the convolution.

        Parameters
        ----------
        kernel : Tensor
            [kw, kh, channels, ...], or [k, channels, ...] in one dimension; only its shape counts.
        x : Tensor
            [w, h, channels, n], or [w, channels, n]; F32.
        is_2d : bool
            False for one dimension; the second number of each pair is then unused.
        type : str
            Type of the result, F16 or F32.

        Returns
        -------
        Tensor
            [taps * channels, places across, places down, n], or [taps * channels, places, n].
        """
        (s0, s1), (p0, p1), (d0, d1) = stride, padding, dilation
        kw, kh, kc, _ = kernel.ne
        w, h, channels, n = x.ne
        ow = self._places(_IM2COL, w, kw, stride=s0, padding=p0, dilation=d0)
        if is_2d:
            oh = self._places(_IM2COL, h, kh, stride=s1, padding=p1, dilation=d1)
            ne, dims = (kw * kh * kc, ow, oh, n), 4
        else:
            ne, dims = (kw * kh, ow, channels, 1), 3
        return self._add(_IM2COL, type_id(type), ne, (kernel, x), (s0, s1, p0, p1, d0, d1, is_2d), dims=dims)

    def im2col_back(
        self,
        grad: Tensor,
        kernel: Tensor,
        ne: tuple[int, int, int, int],
        *,
        stride: Two = (1, 1),
        padding: Two = (0, 0),
        dilation: Two = (1, 1),
        is_2d: bool = True,
    ) -> Tensor:
        """Add up the gradients of `im2col`'s result at the places of its source, whose shape is `ne`."""
        (s0, s1), (p0, p1), (d0, d1) = stride, padding, dilation
        return self._add(_IM2COL_BACK, F32, ne, (grad, kernel), (s0, s1, p0, p1, d0, d1, is_2d))

    def im2col_3d(
        self,
        kernel: Tensor,
        x: Tensor,
        channels: int,
        *,
        stride: Three = (1, 1, 1),
        padding: Three = (0, 0, 0),
        dilation: Three = (1, 1, 1),
        type: str = "F16",
    ) -> Tensor:
        """Do what `im2col` does for volumes: `kernel` [kw, kh, kd, ...], `x` [w, h, d, channels * n]."""
        if channels <= 0:
            raise self._broken(_IM2COL_3D, f"channels must be positive, not {channels}")
        ow, oh, od = self._places_3d(_IM2COL_3D, kernel, x, (stride, padding, dilation))
        kw, kh, kd, _ = kernel.ne
        ne = (kw * kh * kd * channels, ow, oh, od * (x.ne[3] // channels))
        return self._add(_IM2COL_3D, type_id(type), ne, (kernel, x), (*stride, *padding, *dilation, channels))

    def _places_3d(self, op: Op, kernel: Tensor, x: Tensor, steps: tuple[Three, Three, Three]) -> Three:
        ow, oh, od = (
            self._places(op, n, k, stride=s, padding=p, dilation=d)
            for n, k, s, p, d in zip(x.ne[:3], kernel.ne[:3], *steps, strict=True)
        )
        return ow, oh, od

    def col2im_1d(self, x: Tensor, channels: int, *, stride: int = 1, padding: int = 0) -> Tensor:
        """Add up columns `x` [taps * channels, n] where they overlap: [length, channels]."""
        if channels <= 0:
            raise self._broken(_COL2IM_1D, f"channels must be positive, not {channels}")
        length = (x.ne[1] - 1) * stride + x.ne[0] // channels - 2 * padding
        return self._add(_COL2IM_1D, x.type_id, (length, channels), (x,), (stride, channels, padding))

    def conv_2d(
        self, kernel: Tensor, x: Tensor, *, stride: Two = (1, 1), padding: Two = (0, 0), dilation: Two = (1, 1)
    ) -> Tensor:
        """Convolve `x` [w, h, channels, n] with `kernel` [kw, kh, channels, channels out]."""
        return self._conv_2d(_CONV_2D, kernel, x, (stride, padding, dilation))

    def conv_2d_dw(
        self, kernel: Tensor, x: Tensor, *, stride: Two = (1, 1), padding: Two = (0, 0), dilation: Two = (1, 1)
    ) -> Tensor:
        """Convolve each channel of `x` [w, h, channels, n] with its own `kernel` [kw, kh, 1, channels]."""
        return self._conv_2d(_CONV_2D_DW, kernel, x, (stride, padding, dilation))

    def _conv_2d(self, op: Op, kernel: Tensor, x: Tensor, steps: tuple[Two, Two, Two]) -> Tensor:
        (s0, s1), (p0, p1), (d0, d1) = steps
        kw, kh, _, channels_out = kernel.ne
        w, h, _, n = x.ne
        ow = self._places(op, w, kw, stride=s0, padding=p0, dilation=d0)
        oh = self._places(op, h, kh, stride=s1, padding=p1, dilation=d1)
        return self._add(op, x.type_id, (ow, oh, channels_out, n), (kernel, x), (s0, s1, p0, p1, d0, d1))

    def conv_3d(
        self,
        kernel: Tensor,
        x: Tensor,
        channels: int,
        *,
        stride: Three = (1, 1, 1),
        padding: Three = (0, 0, 0),
        dilation: Three = (1, 1, 1),
    ) -> Tensor:
        """Convolve `x` [w, h, d, channels * n] with `kernel` [kw, kh, kd, channels * channels out]."""
        if channels <= 0:
            raise self._broken(_CONV_3D, f"channels must be positive, not {channels}")
        places = self._places_3d(_CONV_3D, kernel, x, (stride, padding, dilation))
        n, channels_out = x.ne[3] // channels, kernel.ne[3] // channels
        values = (*stride, *padding, *dilation, channels, n, channels_out)
        return self._add(_CONV_3D, F32, (*places, channels_out * n), (kernel, x), values)

    def conv_transpose_1d(self, kernel: Tensor, x: Tensor, stride: int = 1) -> Tensor:
        """Stretch `x` [w, channels] by `stride` and convolve it with `kernel` [k, channels out, channels]."""
        ne = ((x.ne[0] - 1) * stride + kernel.ne[0], kernel.ne[1], x.ne[2], 1)
        return self._add(_CONV_TRANSPOSE_1D, F32, ne, (kernel, x), (stride, 0, 1), dims=2)

    def conv_transpose_2d(self, kernel: Tensor, x: Tensor, stride: int = 1) -> Tensor:
        """Stretch `x` [w, h, channels, n] by `stride`, convolve it with `kernel` [kw, kh, channels out, channels]."""
        w, h, _, n = x.ne
        kw, kh, channels_out, _ = kernel.ne
        ne = ((w - 1) * stride + kw, (h - 1) * stride + kh, channels_out, n)
        return self._add(_CONV_TRANSPOSE_2D, F32, ne, (kernel, x), (stride,))

    def pool_1d(
        self, x: Tensor, kind: str | int = PoolKind.MAX, *, window: int, stride: int = 1, padding: int = 0
    ) -> Tensor:
        """Take the largest ("max") or the mean ("avg") of each window of a row."""
        n, ne1, ne2, ne3 = x.ne
        ne = (self._places(_POOL_1D, n, window, stride=stride, padding=padding), ne1, ne2, ne3)
        return self._add(_POOL_1D, F32, ne, (x,), (kind, window, stride, padding), dims=x.n_dims)

    def pool_2d(
        self, x: Tensor, kind: str | int = PoolKind.MAX, *, window: Two, stride: Two = (1, 1), padding: Two = (0, 0)
    ) -> Tensor:
        """Take the largest ("max") or the mean ("avg") of each window of an image."""
        w, h, channels, n = x.ne
        ow = self._places(_POOL_2D, w, window[0], stride=stride[0], padding=padding[0])
        oh = self._places(_POOL_2D, h, window[1], stride=stride[1], padding=padding[1])
        values = (kind, *window, *stride, *padding)
        return self._add(_POOL_2D, F32, (ow, oh, channels, n), (x,), values, dims=x.n_dims)

    def pool_2d_back(
        self,
        grad: Tensor,
        x: Tensor,
        kind: str | int = PoolKind.MAX,
        *,
        window: Two,
        stride: Two = (1, 1),
        padding: Two = (0, 0),
    ) -> Tensor:
        """Spread the gradients of `pool_2d`'s result over its source `x`."""
        ow = self._places(_POOL_2D_BACK, x.ne[0], window[0], stride=stride[0], padding=padding[0])
        oh = self._places(_POOL_2D_BACK, x.ne[1], window[1], stride=stride[1], padding=padding[1])
        shape = (ow, oh, x.ne[2], x.ne[3])
        self._require(_POOL_2D_BACK, (grad.ne == shape, f"source 0 must have the pooled shape {list(shape)}"))
        return self._add(_POOL_2D_BACK, F32, x.ne, (grad, x), (kind, *window, *stride, *padding), dims=x.n_dims)
