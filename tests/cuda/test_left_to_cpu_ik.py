"""Cases of tests/ops for ops of ik_llama.cpp with every node left to the CPU: stored states, rows of no expert."""

from __future__ import annotations

import pytest

from tests.ops.test_ik import (
    test_absent_experts_leave_zeros,
    test_absent_experts_of_a_product,
    test_absent_rows_are_zero,
    test_experts,
    test_product_with_each_expert,
    test_sum_of_rows_behind_a_view,
)
from tests.ops.test_ik_recurrent import *
from tests.ops.test_ik_sparse import (
    test_a_list_that_does_not_count,
    test_attention_checks_listed_rows,
    test_attention_to_listed_rows_with_sinks_and_cap,
    test_indexer_topk_of_permuted_queries,
    test_latent_attention_to_listed_rows,
    test_mask_to_idx,
    test_mask_topk_in_place_over_planes,
)
from tests.ops.test_ik_streams import (
    test_blend_in_place,
    test_cached_rotation_in_place,
    test_ds4_comp,
    test_gather_of_a_view,
    test_weights_of_streams_go_on_as_views,
)


@pytest.fixture
def level() -> str:
    """Name of the device."""
    return "left to the CPU"
