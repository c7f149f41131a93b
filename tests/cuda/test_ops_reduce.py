"""The cases of tests/ops/test_reduce.py on a CUDA device."""

from tests.ops.test_reduce import *
