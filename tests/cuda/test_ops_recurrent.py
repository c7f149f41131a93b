"""The cases of tests/ops/test_recurrent.py on a CUDA device."""

from tests.ops.test_recurrent import *
