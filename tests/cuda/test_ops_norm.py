"""The cases of tests/ops/test_norm.py on a CUDA device."""

from tests.ops.test_norm import *
