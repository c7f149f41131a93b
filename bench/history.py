"""Keep the figures of all runs and tell what became slower: ``python -m bench.history``.

``bench/history.jsonl`` has a line a figure: date, commit, machine, level, threads, opponent, figure, ours, the
opponent's and the ratio. Only ratios of one run can be compared with another run's, and only on the same machine. A
figure is a regression if its last ratio is more than 10 % below the best earlier one, and no turn of the last run came
nearer. The exit status is then 1.

``python -m bench.history --add FILE ...`` adds the figures of results that `bench.run`,
`bench.load`, `bench.sessions` or `bench.client` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .figures import OURS, STOCK

PATH = Path(__file__).with_name("history.jsonl")
NOISE = 0.10
OLD_LEVELS = (("avx512_vnni", "avx512"), ("avx2", "avx2"))
TIMES = ("s", "us")  # less is better
CLIENTS = {OURS: "our client", STOCK: "stock client"}


@dataclass(frozen=True)
class Entry:
    """Hold one figure of one run.

    Attributes
    ----------
    date, commit : str
        When, in ISO format, and of which state of the repository.
    machine : str
        Processor and cores.
    level : str
        Instruction-set level of our server.
    threads : int
        Of each server.
    opponent : str
        Which build, or what of our own stands for one: a sink that discards what it is sent, one client alone.
    figure, unit : str
        What was measured and in what.
    ours, theirs : float
        Medians.
    ratio : float
        How much better ours is.
    best_turn : float
        The highest ratio of the run's turns.
    """

    date: str
    commit: str
    machine: str
    level: str
    threads: int
    opponent: str
    figure: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    best_turn: float

    def series(self) -> tuple[str, ...]:
        """Return what must be equal for two ratios to be comparable."""
        return (self.machine, self.level, f"{self.threads} threads", self.opponent, self.figure)


def read(path: Path = PATH) -> list[Entry]:
    """Return the entries of a history file, in its order; none if it does not exist.

    Raises
    ------
    ValueError
        If a line is damaged; the message names it.
    """
    entries = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, line {number}: {error}") from error
    return entries


def append(entries: Iterable[Entry], path: Path = PATH) -> None:
    """Add entries to a history file."""
    with open(path, "a") as file:
        file.writelines(json.dumps(asdict(entry)) + "\n" for entry in entries)


def _entry(words: Mapping[str, Any], *values: float) -> Entry:
    names = ("ours", "theirs", "ratio", "best_turn")
    rounded: dict[str, Any] = {name: float(f"{value:.5g}") for name, value in zip(names, values, strict=True)}
    return Entry(**words, **rounded)


def level_of(record: Mapping[str, Any]) -> str:
    """Return the level of our server in a record; of an old one, the best that its processor had."""
    guess = next((level for flag, level in OLD_LEVELS if flag in record["machine"]["isa"]), "baseline")
    return str(record.get("level", guess))


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    machine = record["machine"]
    return {
        "date": machine["date"],
        "commit": machine["commit"],
        "machine": f"{machine['processor']}, {machine['cores']} cores",
        "level": level_of(record),
    }


def entries(record: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of a record that `bench.run`, `bench.load`, `bench.sessions` or `bench.client` wrote.

    Raises
    ------
    ValueError
        If it is a record of something else.
    """
    if isinstance(record.get("figures"), list) and "opponent" in record:
        common = {**_common(record), "threads": record["threads"], "opponent": record["opponent"]}
        found = []
        for figure in record["figures"]:
            median, ours, theirs = figure["median"], figure["turns"][OURS], figure["turns"][STOCK]
            turns = [a / b for a, b in zip(ours, theirs, strict=True)]
            best = 1 / min(turns) if figure["unit"] in TIMES else max(turns)
            words = {**common, "figure": figure["name"], "unit": figure["unit"]}
            words["opponent"] = figure.get("against", record["opponent"])
            found.append(_entry(words, median[OURS], median[STOCK], figure["ratio"], best))
        return found
    if isinstance(record.get("figures"), dict) and set(CLIENTS.values()) <= set(record["figures"]):
        arguments = record["arguments"]
        opponent = "stock client, both on our server"
        common = {**_common(record), "threads": arguments["threads"], "opponent": opponent}
        found = []
        for what in ("prefill", "decode"):
            ours, theirs = (record["figures"][CLIENTS[label]][what] for label in (OURS, STOCK))
            best = max(a / b for a, b in zip(ours["turns"], theirs["turns"], strict=True))
            words = {**common, "figure": f"client {record['model']} {what} {arguments[what]}", "unit": "t/s"}
            found.append(_entry(words, ours["median"], theirs["median"], ours["median"] / theirs["median"], best))
        return found
    raise ValueError("no record of bench.run, load, sessions or client")


@dataclass(frozen=True)
class Trend:
    """Hold the runs of one series, in the order of their dates.

    Attributes
    ----------
    series : tuple of str
        Machine, level, threads, opponent, figure.
    entries : list of Entry
        At least one.
    """

    series: tuple[str, ...]
    entries: list[Entry]

    @property
    def last(self) -> Entry:
        """Return the latest run."""
        return self.entries[-1]

    def best_earlier(self) -> Entry | None:
        """Return the run before the last that had the highest ratio."""
        return max(self.entries[:-1], key=lambda entry: entry.ratio, default=None)

    def regressed(self, noise: float = NOISE) -> bool:
        """Tell whether the last ratio fell below the best earlier one by more than the noise, in all its turns."""
        best = self.best_earlier()
        return best is not None and max(self.last.ratio, self.last.best_turn) < best.ratio * (1 - noise)


def trends(entries: Iterable[Entry]) -> list[Trend]:
    """Return the series of a history, each sorted by date."""
    series: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        series.setdefault(entry.series(), []).append(entry)
    return [Trend(key, sorted(found, key=lambda entry: entry.date)) for key, found in series.items()]


def report(found: Sequence[Trend], noise: float = NOISE) -> str:
    """Return the trends as text, a block for each machine, level and opponent."""
    lines: list[str] = []
    heading: tuple[str, ...] = ()
    for trend in sorted(found, key=lambda trend: trend.series[:-1]):
        if trend.series[:-1] != heading:
            heading = trend.series[:-1]
            lines += ["", ", ".join(heading)]
        ratios = " ".join(f"{entry.ratio:.2f}" for entry in trend.entries)
        mark = ""
        best = trend.best_earlier()
        if best is not None and trend.regressed(noise):
            mark = f"  REGRESSION: {best.ratio:.2f} on {best.date[:10]} ({best.commit})"
        lines.append(f"  {trend.series[-1]:34} {ratios}{mark}")
    return "\n".join(lines[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.history", description=__doc__)
    parser.add_argument("--add", nargs="+", type=Path, default=[], metavar="FILE", help="results to add first")
    parser.add_argument("--noise", type=float, default=NOISE, help="fall of a ratio that means nothing")
    parser.add_argument("--path", type=Path, default=PATH, help="the history file")
    args = parser.parse_args(argv)
    try:
        known = {(entry.series(), entry.date) for entry in read(args.path)}
        for file in args.add:
            new = entries(json.loads(file.read_text()))
            append((entry for entry in new if (entry.series(), entry.date) not in known), args.path)
        found = trends(read(args.path))
    except (OSError, ValueError, KeyError) as error:
        print(f"history: {error}", file=sys.stderr)
        return 2
    print(report(found, args.noise))
    regressions = sum(trend.regressed(args.noise) for trend in found)
    print(f"\n{len(found)} figures, {regressions} slower than before")
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
