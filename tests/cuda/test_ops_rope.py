"""The cases of tests/ops/test_rope.py on a CUDA device."""

from tests.ops.test_rope import *
