"""Every node of recorded graphs, computed by stock's kernels and by ours from the same inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.parity.conftest import Servers
from tests.replay.replayer import load
from tests.replay.test_replay import CAPTURES
from tests.support.parity import Deviation, walk

pytestmark = pytest.mark.peer

NAMES = ["llama-fa0", "llama-fa1-q8kv", "gemma3-fa1", "qwen3moe-fa0", "gptoss-fa1"]


@pytest.mark.parametrize("name", NAMES)
def test_nodes(servers: Servers, hold: Callable[[list[Deviation]], None], name: str) -> None:
    deviations = list(walk(servers.stock, servers.ours, load(CAPTURES / "8.0.0" / f"{name}.json")))
    assert len(deviations) > 100
    hold(deviations)
