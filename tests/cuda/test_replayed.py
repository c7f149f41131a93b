"""Recorded conversations of ik_llama.cpp's client with the emulated device: nothing of them is left to the CPU."""

from __future__ import annotations

import pytest

from ggml_rpc.server import Server
from tests.cuda.host.device import EmulatedDriver
from tests.replay.replayer import load, replay
from tests.replay.test_replay import CAPTURES, IK_TOLERANCE

FOLDER = CAPTURES / "ik-3.5.2"
# Sums of two neighbours saturate in the recorded server's kernels of IQ4_K and its kin, for fewer than 32 columns; a
# recurrence carries on how activations were rounded.
BOUNDS = {"ik-types": 5e-2, "qwen3next-fa0": 2e-2}
# A vocabulary of 24000 is too much for the emulator.
MODELS = sorted(p.stem for p in FOLDER.glob("*.json") if not p.stem.startswith("bigvocab"))


@pytest.mark.parametrize("name", MODELS)
def test_client_of_ik(name: str, driver: EmulatedDriver) -> None:
    gpu = driver.gpu()
    capture = load(FOLDER / f"{name}.json")
    with Server(devices=[gpu.device("CUDA0", "emulated GPU")], port=0, protocols=capture.dialect.name) as server:
        report = replay(server.endpoint, capture)
    assert gpu.fallbacks() == {}
    assert gpu.counts()["launches"] > 0
    assert report.reads
    assert report.worst <= BOUNDS.get(name, IK_TOLERANCE), report.line()
