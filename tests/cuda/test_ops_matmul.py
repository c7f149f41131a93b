"""The cases of tests/ops/test_matmul.py on a CUDA device."""

from tests.ops.test_matmul import *
