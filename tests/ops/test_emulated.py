"""Products at the levels that a build for development has a second time, with software for instructions.

Their engines are those of processors that few have at hand: a selection of the tests of products, with few and with
many columns. Software takes its time.
"""

from __future__ import annotations

import numpy as np
import pytest

from ggml_rpc.devices.cpu import levels
from tests.ops import test_ik, test_ik_types, test_matmul
from tests.ops.ik_types import ROWS, SATURATING
from tests.ops.test_matmul import weights
from tests.ops.tolerances import nmse
from tests.support.device import Bench, bf16_to_f32


@pytest.fixture(params=levels(emulated=True))
def level(request: pytest.FixtureRequest) -> str:
    """Name of an emulated level."""
    return request.param


ik_bench = test_ik_types.bench


@pytest.mark.skipif(not levels(emulated=True), reason="not a build for development, or no AVX-512 here")
def test_both_are_there() -> None:
    """The tiles are offered after a trial of their instructions: the software passes it too."""
    assert levels(emulated=True) == ["amx_emulated", "avxvnni_emulated"]


@pytest.mark.parametrize("type_name", test_matmul.TYPES)
@pytest.mark.parametrize("n", [8, 9, 49])
def test_types(bench: Bench, rng: np.random.Generator, type_name: str, n: int) -> None:
    test_matmul.test_types(bench, rng, type_name, n)


@pytest.mark.parametrize("type_name", ["F16", "BF16"])
@pytest.mark.parametrize("k", [1, 31, 97, 131, 545])
@pytest.mark.parametrize("n", [16, 17])
def test_odd_lengths(bench: Bench, rng: np.random.Generator, type_name: str, k: int, n: int) -> None:
    test_matmul.test_odd_lengths(bench, rng, type_name, k, n)


@pytest.mark.parametrize("type_name", ["F16", "Q4_0"])
def test_transposed_activations(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    test_matmul.test_transposed_activations(bench, rng, type_name, "F32", 12)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q4_0", "Q4_1", "Q4_K", "Q3_K", "IQ4_XS", "NVFP4"])
def test_experts(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Columns of an expert do not lie evenly."""
    test_matmul.test_experts(bench, rng, type_name, (40, 3, 1))


def test_many_columns(bench: Bench, rng: np.random.Generator) -> None:
    test_matmul.test_many_columns(bench, rng, 525)


def test_zeros_and_extremes(bench: Bench, rng: np.random.Generator) -> None:
    test_matmul.test_zeros_and_extremes(bench, rng)


@pytest.mark.parametrize("name", ROWS)
def test_ik_types_products(ik_bench: Bench, rng: np.random.Generator, name: str) -> None:
    test_ik_types.test_product(ik_bench, rng, name, 37)


@pytest.mark.parametrize("name", SATURATING)
@pytest.mark.parametrize("n", [5, 32])
def test_saturation(ik_bench: Bench, name: str, n: int) -> None:
    test_ik_types.test_large_neighbours_saturate(ik_bench, name, n)


@pytest.mark.parametrize("type_name", test_ik.GATED_TYPES)
def test_up_and_gate(ik_bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    test_ik.test_up_and_gate(ik_bench, rng, type_name, 40)


@pytest.mark.parametrize("type_name", ["BF16", "F16"])
def test_special_weights(bench: Bench, rng: np.random.Generator, type_name: str) -> None:
    """Very large and very small weights; a NaN stays in its row."""
    n, m, k = 20, 33, 70
    _, values = weights(rng, type_name, (m, k))
    x = rng.standard_normal((n, k)).astype(np.float32)
    if type_name == "F16":
        values[3], values[5] = 65504.0, 2.0**-24
        values[7, 11] = np.nan
        raw = values.astype(np.float16).tobytes()
    else:
        values[3], values[5] = 2.0**100, 2.0**-100
        values[7, 11] = np.nan
        raw = test_matmul.f32_to_bf16(values.astype(np.float32)).tobytes()
    node = test_matmul.mul_mat(bench, bench.put_raw(type_name, (m, k), raw), bench.put(x))
    bench.run(node)
    got = np.asarray(bench.read(node)).reshape(n, m)
    assert np.isnan(got[:, 7]).all()
    expected = test_matmul.on_grid(x, type_name) @ values.T
    for row in (3, 5, 6, 8):
        assert nmse(got[:, row], expected[:, row]) < test_matmul.MODEL_BOUND


@pytest.mark.parametrize("level", [name for name in levels(emulated=True) if name.startswith("amx")], indirect=True)
def test_tiles_take_denormals_as_zeros(bench: Bench) -> None:
    """As the processor does: the sum of such products is zero, not what 32-bit floats would hold of it."""
    bits = np.full((16, 32), 0x0040, np.uint16)
    assert (bf16_to_f32(bits) > 0).all()
    columns = bench.put(np.ones((16, 32), np.float32))
    node = test_matmul.mul_mat(bench, bench.put_raw("BF16", (16, 32), bits.tobytes()), columns)
    bench.run(node)
    assert (np.asarray(bench.read(node)) == 0).all()
