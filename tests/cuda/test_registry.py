"""What the suite runs is what the registry lists: else a warm-up or the matrix of architectures would miss kernels.

These come behind what runs ops: files are run in the order of their names.
"""

from __future__ import annotations

from ggml_rpc.devices.cuda import registry

Names = set[tuple[str, str]]


def test_what_plans_ask_for_is_listed(covered: tuple[Names, Names]) -> None:
    asked, ran = covered
    assert asked | ran <= set(registry())


def test_what_is_listed_ran(covered: tuple[Names, Names]) -> None:
    assert set(registry()) - covered[1] == set()
