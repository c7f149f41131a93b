"""The cases of tests/ops/test_glu.py on a CUDA device."""

from tests.ops.test_glu import *
