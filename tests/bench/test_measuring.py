"""The measurements run from end to end on a tiny model, with the stock wheel; no time is looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import history, kernels, run, scaling
from ggml_rpc.devices.cpu import levels
from ggml_rpc.peers import prepare_peer
from tests.e2e.conftest import make_gguf, need

TINY = ["--opponent", "wheel", "--repeats", "2"]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    need("stock peer 8.0", lambda: prepare_peer("8.0"))
    path = tmp_path / "tiny.gguf"
    make_gguf("random", path, "tiny", "Q4_0")
    return str(path)


@pytest.mark.peer
def test_the_table(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results" / "out.json"
    monkeypatch.setattr(history, "PATH", tmp_path / "history.jsonl")
    words = [tiny, *TINY, "--prefill", "8", "--decode", "3", "--isa", levels()[-1], "--no-wire", "-t", "1"]
    assert run.main([*words, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert [figure["name"] for figure in record["figures"]] == [
        f"{tiny} {what}" for what in ("load", "prefill 8", "decode 3")
    ]
    assert all(len(turns) == 2 and min(turns) > 0 for figure in record["figures"] for turns in figure["turns"].values())
    assert record["level"] == levels()[-1]
    assert record["models"][tiny]["decode_share"] > 0
    assert len(history.entries(record)) == 3


@pytest.mark.peer
def test_scaling(tiny: str, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["--model", tiny, *TINY, "--threads", "1", "--contexts", "0,600", "--batches", "1,3"]
    assert scaling.main([*words, "--prefill", "8", "--decode", "3", "--out", str(out)]) == 0
    series = json.loads(out.read_text())["series"]
    assert series["context"]["x"] == [0, 600]
    assert series["context"]["speeds"]["prefill"]["ours"]["median"][0] is None
    assert series["context"]["speeds"]["prefill"]["stock"]["median"][1] > 0
    assert len(series["batch"]["speeds"]["batch"]["ours"]["median"]) == 2
    assert series["threads"]["decode_floor_tps"][0] > 0


def test_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SIZE", 256)
    monkeypatch.setattr(kernels, "STREAM", 1 << 20)
    out = tmp_path / "out.json"
    assert kernels.main(["Q8_0", "-t", "1", "--columns", "1", "16", "--rounds", "1", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert min(record["rates"]["Q8_0"].values()) > 0
    assert set(record["rates"]["Q8_0"]) == {"1", "16"}
    assert record["floors"]["memory"] > 0
