"""Products by cuBLASLt, for which the emulated driver has a stand-in; and finding the real one."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.devices.cuda import blas, blas_functions
from ggml_rpc.errors import DeviceError
from tests.cuda.conftest import forget_drivers
from tests.cuda.host.bench import Bench as DriverBench
from tests.cuda.host.device import EmulatedDriver
from tests.cuda.test_ops_matmul import Rounded
from tests.cuda.test_products import QUANTISED
from tests.cuda.test_products_siblings import launches_of
from tests.ops.test_matmul import mul_mat, product, weights
from tests.ops.tolerances import nmse
from tests.support.device import Bench

M, K, N = 512, 256, 256  # the fewest operations that are worth a call


@pytest.fixture(params=["emulated with cuBLASLt"])
def level(request: pytest.FixtureRequest) -> str:
    """Name of the device."""
    return request.param


def products(bench: Bench) -> int:
    return int(bench.device.gpu.counts()["products"])


def expected(w: np.ndarray, x: np.ndarray, type_name: str) -> np.ndarray:
    rounded = Rounded(x, type_name)
    return product(rounded.weights(w, False), rounded.of(False))


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
@pytest.mark.parametrize("size", [1.0, 2.0**20, 2.0**-20])
def test_plain(bench: Bench, rng: np.random.Generator, type_name: str, size: float) -> None:
    """Rows of activations that a half does not hold are scaled, and the results scaled back."""
    data, values = weights(rng, type_name, (M, K))
    x = rng.standard_normal((N, K)).astype(np.float32)
    scaled = x.copy()
    scaled[::3] *= np.float32(size)
    before = products(bench)
    node = mul_mat(bench, bench.put_raw(type_name, (M, K), data), bench.put(scaled))
    bench.run(node)
    assert products(bench) == before + 1
    wanted = expected(values, x, type_name)
    wanted[..., ::3, :] *= size
    got = bench.read(node)
    for part in (slice(0, None, 3), slice(1, None, 3)):
        assert nmse(got[..., part, :], wanted[..., part, :]) < 1e-10


def test_matrices(bench: Bench, rng: np.random.Generator) -> None:
    """Keys of several heads, as a view into a cache, against the queries of two heads each."""
    heads, cells, dim, n = 3, 1030, 64, 90
    data, values = weights(rng, "F16", (cells, heads, dim))
    cache = bench.put_raw("F16", (cells, heads, dim), data)
    row = cache.nb[1]
    keys = bench.view(cache, "F16", (heads, cells - 6, dim), (row, heads * row, cache.nb[0]))
    q = rng.standard_normal((2 * heads, n, dim)).astype(np.float32)
    before = products(bench)
    node = mul_mat(bench, keys, bench.put(q))
    bench.run(node)
    assert products(bench) == before + 1
    assert nmse(bench.read(node), expected(values.transpose(1, 0, 2)[:, : cells - 6], q, "F16")) < 1e-10


@pytest.mark.parametrize("type_name", QUANTISED)
def test_unpacked(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    data, values = weights(rng, type_name, (M, K))
    x = rng.standard_normal((N, K)).astype(np.float32)
    before = products(bench)
    node = mul_mat(bench, bench.put_raw(type_name, (M, K), data), bench.put(x))
    bench.run(node)
    assert products(bench) == before + 1
    assert nmse(bench.read(node), expected(values, x, type_name)) < 1e-10


def test_slabs(rng: np.random.Generator) -> None:
    """Weights that would take more than three times the L2 cache are unpacked and multiplied in parts."""
    forget_drivers()
    driver = EmulatedDriver(l2_bytes=1 << 18)
    device = driver.gpu(blas=driver.blas).device("CUDA0", "emulated GPU", host_memory=True)
    bench = DriverBench(device)
    data, values = weights(rng, "Q8_0", (M + 200, 1024))
    x = rng.standard_normal((N, 1024)).astype(np.float32)
    node = mul_mat(bench, bench.put_raw("Q8_0", (M + 200, 1024), data), bench.put(x))
    bench.compile([node]).run()
    assert device.gpu.counts()["products"] == 2
    assert driver.misuse() == ""
    assert nmse(bench.read(node), expected(values, x, "Q8_0")[0, 0]) < 1e-10


@pytest.mark.parametrize("shape", [(M, K, N), (M, K, 32), (100, 64, 256), (M, 252, N)])
def test_small_products_and_odd_rows_take_tiles(
    bench: Bench, rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    """A call of the library comes with a kernel that scales the results."""
    m, k, n = shape
    node = mul_mat(bench, bench.put_raw("F16", (m, k), weights(rng, "F16", (m, k))[0]), bench.place("F32", (n, k)))
    assert launches_of(bench, [node]) == (3 if shape == (M, K, N) else 2)


def chain(bench: Bench, rng: np.random.Generator) -> tuple[list[object], np.ndarray]:
    """Return a product between additions, and what the last gives."""
    data, values = weights(rng, "Q4_0", (M, K))
    x = rng.standard_normal((N, K)).astype(np.float32)
    source = bench.put(x)
    doubled = bench.node("ADD", "F32", (N, K), [source, source])
    node = mul_mat(bench, bench.put_raw("Q4_0", (M, K), data), doubled)
    last = bench.node("ADD", "F32", (N, M), [node, node])
    return [doubled, node, last], 2 * expected(values, 2 * x, "Q4_0")


def test_captured(driver: EmulatedDriver, rng: np.random.Generator) -> None:
    """Products are part of a captured graph, of one that takes it over, and of one whose scratch moved."""
    device = driver.gpu(blas=driver.blas).device("CUDA0", "emulated GPU", host_memory=True)
    for turn in range(2):
        bench = DriverBench(device, 8 << 20)
        nodes, wanted = chain(bench, rng)
        plan = bench.compile(nodes)
        for _ in range(3):
            plan.run()
        assert nmse(bench.read(nodes[-1]), wanted[0, 0]) < 1e-10
        counts = device.gpu.counts()
        assert counts["products"] == 3 * (turn + 1)
        assert (counts["graph_launches"], counts["graph_updates"]) == (2 * (turn + 1), turn)
        del plan


def test_without_it_tiles_serve(driver: EmulatedDriver, rng: np.random.Generator) -> None:
    """No library, one that does not start, and one without an algorithm."""
    own: list[int] = []

    def asked() -> int:
        own.append(1)
        return 0

    for failing in (None, "cublasLtCreate", "cublasLtMatmulAlgoGetHeuristic"):
        if failing is not None:
            driver.inject(failing, 1)
        gpu = driver.gpu(blas=asked if failing is None else driver.blas)
        bench = DriverBench(gpu.device("CUDA0", "emulated GPU", host_memory=True), 8 << 20)
        data, _ = weights(rng, "F16", (M, K))
        x = rng.standard_normal((N, K)).astype(np.float32)
        node = mul_mat(bench, bench.put_raw("F16", (M, K), data), bench.put(x))
        bench.compile([node])
        assert gpu.counts()["products"] == 0
        assert any(expression.startswith("tiles<") for _, expression in gpu.asked())
    assert own == [1]


def test_a_product_that_fails_fails_the_run(driver: EmulatedDriver, rng: np.random.Generator) -> None:
    device = driver.gpu(blas=driver.blas).device("CUDA0", "emulated GPU", host_memory=True)
    bench = DriverBench(device, 8 << 20)
    nodes, _ = chain(bench, rng)
    plan = bench.compile(nodes)
    driver.inject("cublasLtMatmul", 1)
    with pytest.raises(DeviceError, match="op MUL_MAT, tensor 'mul_mat result': cublasLtMatmul failed with status 1"):
        plan.run()


# ---- Finding it ----


def test_the_newest_is_found(tmp_path: Path) -> None:
    assert blas.find([str(tmp_path)]) is None
    for name in ("cublas/lib/libcublasLt.so.12", "cu13/lib/libcublasLt.so.13", "cu13/lib/libcublasLt.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert blas.find([str(tmp_path)]) == tmp_path / "cu13/lib/libcublasLt.so.13"


def test_why_it_is_not_used_is_a_line_of_the_debug_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    broken = tmp_path / "libcublasLt.so.13"
    broken.write_bytes(b"no library")
    assert blas.load(None, 13000) is None
    assert blas.load(broken, 13000) is None
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("cuBLASLt is not installed (pip install nvidia-cublas)")
    assert lines[1].startswith("cuBLASLt cannot be used: ")


@pytest.mark.skipif(blas.find() is None, reason="nvidia-cublas is not installed")
def test_the_real_one_has_what_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    table = blas.load(blas.find(), 99000)
    assert len(table) == len(blas_functions())
    assert all(table)
    assert blas.load(blas.find(), 11000) is None
    assert "it is not used" in caplog.text
    names = dict(zip(blas_functions(), table, strict=True))
    operation, layout, preference = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()

    def call(name: str, *args: object) -> int:
        kinds = [ctypes.c_int if isinstance(a, int) else type(a) for a in args]
        return int(ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(names[name])(*args))

    # The numbers and sizes of csrc/cuda/blas.h, without a GPU.
    assert call("cublasLtMatmulDescCreate", ctypes.pointer(operation), 68, 0) == 0
    one, batches, offset = ctypes.c_int32(1), ctypes.c_int32(3), ctypes.c_int64(4096)
    assert call("cublasLtMatmulDescSetAttribute", operation, 3, ctypes.pointer(one), ctypes.c_size_t(4)) == 0
    size = ctypes.c_uint64(64)
    for kind in (0, 2, 14):
        assert call("cublasLtMatrixLayoutCreate", ctypes.pointer(layout), kind, size, size, ctypes.c_int64(64)) == 0
        for attribute, value, size_of in ((5, batches, 4), (6, offset, 8)):
            set_to = (layout, attribute, ctypes.pointer(value), ctypes.c_size_t(size_of))
            assert call("cublasLtMatrixLayoutSetAttribute", *set_to) == 0
        assert call("cublasLtMatrixLayoutDestroy", layout) == 0
    assert call("cublasLtMatmulPreferenceCreate", ctypes.pointer(preference)) == 0
    workspace, alignment = ctypes.c_uint64(32 << 20), ctypes.c_uint32(16)
    for attribute, value, size_of in ((1, workspace, 8), *((i, alignment, 4) for i in (5, 6, 7, 8))):
        set_to = (preference, attribute, ctypes.pointer(value), ctypes.c_size_t(size_of))
        assert call("cublasLtMatmulPreferenceSetAttribute", *set_to) == 0
    assert call("cublasLtMatmulPreferenceDestroy", preference) == 0
    assert call("cublasLtMatmulDescDestroy", operation) == 0
