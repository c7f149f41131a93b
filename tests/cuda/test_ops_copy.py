"""The cases of tests/ops/test_copy.py on a CUDA device."""

from tests.ops.test_copy import *
