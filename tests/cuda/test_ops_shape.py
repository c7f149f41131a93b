"""The cases of tests/ops/test_shape.py on a CUDA device."""

from tests.ops.test_shape import *
