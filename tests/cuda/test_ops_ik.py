"""The cases of tests/ops/test_ik.py on a CUDA device."""

from tests.ops.test_ik import *
