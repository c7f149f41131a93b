"""Hold what is measured in turns on two servers, or on one in two ways, and print it.

``python -m bench.figures FILE ...`` prints the tables of results that ``bench.run`` wrote, as the README shows them.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS, STOCK = "ours", "stock"
TITLES = {
    "gemma": "Gemma 3 270M Q4_K_M",
    **{f"tinyllama-{kind}": f"TinyLlama shape {kind}" for kind in ("Q4_0", "Q4_K_M", "Q8_0", "F16")},
}


@dataclass
class Figure:
    """Collect the turns of one measurement on both servers.

    Attributes
    ----------
    name, unit : str
        What is measured and in what.
    higher_is_better : bool
        Sense of the ratio: above 1 always means that ours is better.
    turns : dict
        Values by label, in the order in which they were measured.
    against : str
        What the values of the label `STOCK` are of; nothing for the opponent of the whole run.
    """

    name: str
    unit: str
    higher_is_better: bool
    turns: dict[str, list[float]] = field(default_factory=lambda: {OURS: [], STOCK: []})
    against: str = ""

    def median(self, label: str) -> float:
        """Return the median of one server's turns."""
        return statistics.median(self.turns[label])

    def ratio(self) -> float:
        """Return how much better ours is: 2 means twice as fast."""
        ratio = self.median(OURS) / self.median(STOCK)
        return ratio if self.higher_is_better else 1 / ratio

    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest ratio of a turn of ours and the opponent's turn after it."""
        ratios = [ours / stock for ours, stock in zip(self.turns[OURS], self.turns[STOCK], strict=True)]
        if not self.higher_is_better:
            ratios = [1 / ratio for ratio in ratios]
        return min(ratios), max(ratios)

    def record(self) -> dict[str, Any]:
        """Return what goes into the JSON file."""
        medians = {label: self.median(label) for label in self.turns}
        fields = {"name": self.name, "unit": self.unit, "median": medians, "ratio": self.ratio()}
        against = {"against": self.against} if self.against else {}
        return {**fields, "range": self.range(), "turns": self.turns, **against}


def plain_table(figures: Sequence[Figure]) -> str:
    """Return the figures as an aligned table."""
    lines = [f"{'':34} {'unit':>5} {'ours':>10} {'stock':>10} {'ratio':>7}  {'turns':>13}"]
    for figure in figures:
        low, high = figure.range()
        medians = f"{figure.median(OURS):10.2f} {figure.median(STOCK):10.2f}"
        lines.append(f"{figure.name:34} {figure.unit:>5} {medians} {figure.ratio():6.2f}x  {low:5.2f} - {high:5.2f}")
    return "\n".join(lines)


def readme_table(record: Mapping[str, Any]) -> str:
    """Return the models of a record as the table of the README, in Markdown.

    Parameters
    ----------
    record : mapping
        What `bench.run` writes.
    """
    prefill, decode = record["prefill"], record["decode"]
    figures = {figure["name"]: figure for figure in record["figures"]}
    lines = [
        f"| model | prefill {prefill}, tokens/s: ours | stock | ratio "
        f"| decode {decode}, tokens/s: ours | stock | ratio | memory allows | reached |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, model in record["models"].items():
        cells = [TITLES.get(name, name)]
        for key in (f"{name} prefill {prefill}", f"{name} decode {decode}"):
            median = figures[key]["median"]
            cells += [_number(median[OURS]), _number(median[STOCK]), f"{figures[key]['ratio']:.2f}x"]
        cells += [_number(model["decode_floor_tps"]), f"{100 * model['decode_share']:.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def wire_table(record: Mapping[str, Any]) -> str:
    """Return the figures of a record that are of no model, and the loads of models, in Markdown."""
    lines = ["| | unit | ours | stock | ratio |", "|---|---|---:|---:|---:|"]
    for figure in record["figures"]:
        model, _, what = figure["name"].partition(" ")
        if model in record["models"] and what != "load":
            continue
        name = f"{TITLES.get(model, model)}, load" if what == "load" else figure["name"]
        median = figure["median"]
        lines.append(
            f"| {name} | {figure['unit']} | {median[OURS]:.3g} | {median[STOCK]:.3g} | {figure['ratio']:.2f}x |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def report(record: Mapping[str, Any]) -> str:
    """Return a record's machine, opponent and command, and its tables, in Markdown."""
    machine = record["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, level {record['level']}, {record['threads']} threads"
    when = f"{machine['date'][:10]}, commit {machine['commit']}"
    head = f"{where}, {when}; stock: {record['opponent']}; `{record['command']}`"
    return "\n\n".join([head, readme_table(record), wire_table(record)])


def main() -> None:
    """Print the tables of the files on the command line."""
    print("\n\n".join(report(json.loads(Path(name).read_text())) for name in sys.argv[1:]))


if __name__ == "__main__":
    main()
