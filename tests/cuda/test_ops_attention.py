"""The cases of tests/ops/test_attention.py on a CUDA device."""

from tests.ops.test_attention import *
