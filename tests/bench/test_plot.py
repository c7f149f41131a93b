"""Results become pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import plot
from tests.bench.records import KERNELS, RUN, SCALING

RECORDS = {"ratios-avx512-native": RUN, "scaling-avx512": SCALING, "kernels-avx2": KERNELS}


@pytest.mark.parametrize(("name", "record"), RECORDS.items())
def test_a_result_becomes_a_small_png(name: str, record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert plot.main([str(tmp_path / "result.json"), "--folder", str(tmp_path)]) == 0
    data = (tmp_path / f"{name}.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 600
    assert height > 150
    assert len(data) < 200_000


def test_the_same_result_gives_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "result.json").write_text(json.dumps(KERNELS))
    for folder in ("a", "b"):
        assert plot.main([str(tmp_path / "result.json"), "--folder", str(tmp_path / folder)]) == 0
    assert (tmp_path / "a" / "kernels-avx2.png").read_bytes() == (tmp_path / "b" / "kernels-avx2.png").read_bytes()


def test_series_measured_apart_are_drawn_together(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    series = SCALING["series"]
    parts = [{**SCALING, "series": {"batch": series["batch"]}}, {**SCALING, "series": {"threads": series["threads"]}}]
    sizes = []
    for count in (1, 2):
        files = [tmp_path / f"{i}.json" for i in range(count)]
        for file, part in zip(files, parts, strict=False):
            file.write_text(json.dumps(part))
        assert plot.main([*map(str, files), "--folder", str(tmp_path)]) == 0
        sizes.append((tmp_path / "scaling-avx512.png").stat().st_size)
    assert sizes[1] > 1.2 * sizes[0]


def test_the_title_names_machine_level_and_date() -> None:
    assert plot.machine(RUN) == "Test CPU, 2 cores, avx512, 2 threads, 2026-11-20"


@pytest.mark.parametrize("record", [{"machine": RUN["machine"], "verdicts": {}}, {**RUN, "kind": "sessions"}])
def test_other_results_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any]
) -> None:
    (tmp_path / "accuracy.json").write_text(json.dumps(record))
    assert plot.main([str(tmp_path / "accuracy.json"), "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "accuracy.json: nothing to draw\n"
    assert not list(tmp_path.glob("*.png"))


def test_a_missing_library_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (tmp_path / "result.json").write_text(json.dumps(RUN))
    assert plot.main([str(tmp_path / "result.json"), "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "plot: pictures need Matplotlib: pip install 'ggml-rpc[bench]'\n"
