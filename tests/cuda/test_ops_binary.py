"""The cases of tests/ops/test_binary.py on a CUDA device."""

from tests.ops.test_binary import *
