"""The history of the benchmarks tells a regression from noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import history, load, sessions
from tests.bench.records import RUN, later

ROOT = Path(__file__).resolve().parents[2]


def trend(*records: dict[str, Any], figure: str) -> history.Trend:
    found = history.trends(entry for record in records for entry in history.entries(record))
    return next(trend for trend in found if trend.series[-1] == figure)


def test_a_record_becomes_an_entry_a_figure() -> None:
    entries = history.entries(RUN)
    assert [entry.figure for entry in entries] == [figure["name"] for figure in RUN["figures"]]
    prefill = entries[2]
    assert prefill.series() == ("Test CPU, 2 cores", "avx512", "2 threads", RUN["opponent"], prefill.figure)
    assert (prefill.ours, prefill.theirs, prefill.ratio) == (300, 50, 6)
    assert prefill.best_turn == 6.02


def test_the_best_turn_of_a_time_is_the_shortest() -> None:
    assert history.entries(RUN)[0].best_turn == 4


def test_old_records_have_the_level_of_their_processor() -> None:
    record = {key: value for key, value in RUN.items() if key != "level"}
    assert {entry.level for entry in history.entries(record)} == {"avx512"}
    record["machine"] = {**RUN["machine"], "isa": ["avx2"]}
    assert {entry.level for entry in history.entries(record)} == {"avx2"}


def test_the_client_beside_the_stock_one_is_a_series_too() -> None:
    speeds = {"median": 2.0, "turns": [2.0, 3.0]}
    record = {
        "machine": RUN["machine"],
        "model": "gemma",
        "arguments": {"threads": 2, "prefill": 1024, "decode": 48},
        "figures": {
            "our client": {"prefill": speeds, "decode": speeds},
            "stock client": {"prefill": {"median": 1.0, "turns": [1.0, 1.0]}, "decode": speeds},
        },
    }
    prefill, decode = history.entries(record)
    assert (prefill.figure, prefill.ratio, prefill.best_turn) == ("client gemma prefill 1024", 2, 3)
    assert (decode.figure, decode.ratio) == ("client gemma decode 48", 1)


def test_figures_against_something_else_are_series_of_their_own() -> None:
    turns = {"sink": [1.0, 1.0], "ours": [1.1, 1.0], "stock": [2.0, 2.0]}
    record = {**RUN, "figures": [figure.record() for figure in load.figures("gemma", turns)]}
    beside_sink, beside_stock = history.entries(record)
    assert (beside_sink.figure, beside_sink.opponent) == ("gemma load, cold", "a sink that discards what it is sent")
    assert beside_sink.ratio == pytest.approx(1 / 1.05, abs=1e-4)
    assert (beside_stock.opponent, beside_stock.ratio) == (RUN["opponent"], pytest.approx(2 / 1.05, abs=1e-4))
    alone = {sessions.ALONE: [60.0], sessions.TOGETHER: [66.0], sessions.BESIDE: [45.0]}
    record = {**RUN, "figures": [figure.record() for figure in sessions.figures("gemma", 4, alone)]}
    assert [(entry.figure, entry.opponent, entry.ratio) for entry in history.entries(record)] == [
        ("gemma decode, 4 clients", "one client alone", 1.1),
        ("gemma decode, beside a busy process", "one client alone", 0.75),
    ]


@pytest.mark.parametrize("record", [{}, {"figures": []}, {"figures": {"a": {}}}, {"kind": "scaling"}])
def test_records_of_something_else_are_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no record"):
        history.entries(record)


@pytest.mark.parametrize(("factor", "regressed"), [(1.2, False), (0.95, False), (0.89, True), (0.5, True)])
def test_a_fall_beyond_the_noise_is_a_regression(factor: float, regressed: bool) -> None:
    name = "gemma prefill 512"
    assert trend(RUN, later(RUN, 21, prefill_512=factor), figure=name).regressed() == regressed


def test_the_best_of_all_earlier_runs_counts_and_dates_give_the_order() -> None:
    name = "gemma decode 128"
    runs = [later(RUN, 23, decode_128=1.0), later(RUN, 21, decode_128=1.5), later(RUN, 22, decode_128=1.05), RUN]
    found = trend(*runs, figure=name)
    assert [round(entry.ratio, 2) for entry in found.entries] == [1.2, 1.8, 1.26, 1.2]
    best = found.best_earlier()
    assert best is not None
    assert best.date.startswith("2026-11-21")
    assert found.regressed()
    assert not found.regressed(noise=0.4)


def test_one_turn_that_was_as_good_makes_it_noise() -> None:
    worse = later(RUN, 21, prefill_512=0.8)
    assert trend(RUN, worse, figure="tinyllama-Q4_0 prefill 512").regressed()
    prefill = next(item for item in worse["figures"] if item["name"] == "tinyllama-Q4_0 prefill 512")
    prefill["turns"]["ours"][0] = 300.0
    assert not trend(RUN, worse, figure="tinyllama-Q4_0 prefill 512").regressed()


def test_other_machines_levels_and_opponents_are_not_compared() -> None:
    other = later(RUN, 21, prefill_512=0.5)
    for change in ({"level": "avx2"}, {"threads": 1}, {"opponent": "another"}):
        assert not trend(RUN, {**other, **change}, figure="gemma prefill 512").regressed()
    moved = {**other, "machine": {**other["machine"], "processor": "Another CPU"}}
    assert not trend(RUN, moved, figure="gemma prefill 512").regressed()


def test_the_command_adds_once_prints_the_trend_and_fails_on_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.jsonl"
    for name, record in (("a", RUN), ("b", later(RUN, 21, prefill_512=0.5))):
        (tmp_path / name).write_text(json.dumps(record))
    add = ["--path", str(path), "--add"]
    assert history.main([*add, str(tmp_path / "a")]) == 0
    assert history.main([*add, str(tmp_path / "a")]) == 0
    assert len(history.read(path)) == len(RUN["figures"])
    capsys.readouterr()
    assert history.main([*add, str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "gemma prefill 512" in line)
    assert "4.50 2.25  REGRESSION: 4.50 on 2026-11-20 (0123456789ab)" in line
    assert out.endswith("6 figures, 2 slower than before\n")


def test_a_damaged_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    history.append(history.entries(RUN)[:1], path)
    with open(path, "a") as file:
        file.write('{"date": 1}\n')
    assert history.main(["--path", str(path)]) == 2
    assert "history.jsonl, line 2:" in capsys.readouterr().err


def test_the_repository_has_a_history_without_regressions() -> None:
    entries = history.read(ROOT / "bench" / "history.jsonl")
    assert entries
    assert len({(entry.series(), entry.date) for entry in entries}) == len(entries)
