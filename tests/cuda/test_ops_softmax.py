"""The cases of tests/ops/test_softmax.py on a CUDA device."""

from tests.ops.test_softmax import *
