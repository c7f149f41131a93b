"""The cases of tests/ops/test_ik_types.py on a CUDA device."""

from tests.ops.test_ik_types import *
