"""The cases of tests/ops/test_quants.py on a CUDA device."""

from tests.ops.test_quants import *
