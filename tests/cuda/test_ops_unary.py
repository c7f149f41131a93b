"""The cases of tests/ops/test_unary.py on a CUDA device."""

from tests.ops.test_unary import *
