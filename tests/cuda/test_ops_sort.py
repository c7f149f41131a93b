"""The cases of tests/ops/test_sort.py on a CUDA device."""

from tests.ops.test_sort import *
