"""What is measured in turns becomes medians, ratios and tables."""

from __future__ import annotations

import pytest

from bench.figures import OURS, STOCK, Figure, plain_table, readme_table, report, wire_table
from tests.bench.records import RUN


def filled(unit: str, higher: bool, ours: list[float], stock: list[float]) -> Figure:
    figure = Figure("what", unit, higher_is_better=higher)
    figure.turns[OURS], figure.turns[STOCK] = ours, stock
    return figure


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    assert filled("t/s", True, [10, 30, 20], [10, 10, 10]).ratio() == 2
    assert filled("s", False, [10, 30, 20], [10, 10, 10]).ratio() == 0.5


def test_the_range_is_that_of_neighbouring_turns() -> None:
    assert filled("t/s", True, [10, 30], [20, 15]).range() == (0.5, 2)
    assert filled("s", False, [10, 30], [20, 15]).range() == (0.5, 2)


def test_turns_that_have_no_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        filled("t/s", True, [10, 30], [20]).range()


def test_a_record_holds_every_turn() -> None:
    record = filled("t/s", True, [10, 30, 20], [10, 10, 10]).record()
    assert record["median"] == {"ours": 20, "stock": 10}
    assert record["turns"] == {"ours": [10, 30, 20], "stock": [10, 10, 10]}
    assert record["ratio"] == 2


def test_the_plain_table_has_a_line_a_figure() -> None:
    lines = plain_table([filled("t/s", True, [10.0], [4.0])]).splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["what", "t/s", "10.00", "4.00", "2.50x", "2.50", "-", "2.50"]


def test_the_readme_table_has_a_line_a_model() -> None:
    head, rule, *rows = readme_table(RUN).splitlines()
    assert "prefill 512" in head
    assert "decode 128" in head
    assert head.count("|") == rule.count("|")
    assert rows == [
        "| TinyLlama shape Q4_0 | 300 | 50.0 | 6.00x | 38.0 | 30.0 | 1.27x | 50.0 | 76 % |",
        "| Gemma 3 270M Q4_K_M | 1800 | 400 | 4.50x | 60.0 | 50.0 | 1.20x | 120 | 50 % |",
    ]


def test_the_wire_table_holds_what_the_other_does_not() -> None:
    rows = wire_table(RUN).splitlines()[2:]
    assert rows == [
        "| round trip | us | 20 | 40 | 2.00x |",
        "| TinyLlama shape Q4_0, load | s | 0.5 | 1 | 2.00x |",
    ]


def test_a_report_names_machine_opponent_and_command_before_the_tables() -> None:
    head, models, rest = report(RUN).split("\n\n")
    assert head.startswith(
        "Test CPU, 2 cores, level avx512, 2 threads, 2026-11-20, commit 0123456789ab; stock: llama.cpp"
    )
    assert head.endswith("; `python -m bench.run`")
    assert models == readme_table(RUN)
    assert rest == wire_table(RUN)
