"""Recorded conversations of ik_llama.cpp's client with the emulated device: nothing of them is left to the CPU."""

from __future__ import annotations

import pytest

from ggml_rpc.server import Server
from tests.cuda.host.device import EmulatedDriver
from tests.replay.replayer import load, replay
from tests.replay.test_replay import CAPTURES, IK_TOLERANCE

FOLDER = CAPTURES / "ik-3.5.2"
# Too long for the emulator: a vocabulary of 24000, experts beside delta nets.
# Sums of two neighbours saturate in the recorded server's kernels of IQ4_K and its kin, for fewer than 32 columns.
SATURATED = {"ik-types": 5e-2}
MODELS = sorted(p.stem for p in FOLDER.glob("*.json") if not p.stem.startswith(("qwen3next", "bigvocab")))


@pytest.mark.parametrize("name", MODELS)
def test_client_of_ik(name: str, driver: EmulatedDriver) -> None:
    gpu = driver.gpu()
    capture = load(FOLDER / f"{name}.json")
    with Server(devices=[gpu.device("CUDA0", "emulated GPU")], port=0, protocols=capture.dialect.name) as server:
        report = replay(server.endpoint, capture)
    assert gpu.fallbacks() == {}
    assert gpu.counts()["launches"] > 0
    assert report.reads
    assert report.worst <= SATURATED.get(name, IK_TOLERANCE), report.line()
