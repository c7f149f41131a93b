"""The cases of tests/ops/test_rows.py on a CUDA device."""

from tests.ops.test_rows import *
