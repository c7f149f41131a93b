"""Write results as JSON files, and name those below ``bench/results``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import history

RESULTS = Path(__file__).with_name("results")


def default_path(record: Mapping[str, Any]) -> Path:
    """Return where a result goes: date, machine, level, and the opponent or what was measured make the name."""
    machine = record["machine"]
    words = [machine["date"][:10], machine["processor"].split(" @")[0], record["level"]]
    words.append(record.get("kind") or record["opponent_kind"])
    return RESULTS / ("-".join("".join(c if c.isalnum() else "-" for c in word.lower()) for word in words) + ".json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say where the result goes; without any it is only printed."""
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--save", action="store_true", help="write a JSON file below bench/results, named by the run")


def add_record_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the option that adds the figures to the history."""
    parser.add_argument("--record", action="store_true", help="add the figures to bench/history.jsonl")


def save(record: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Write a result where the options want it, and note its figures in the history if they ask for that."""
    path: Path | None = args.out or (default_path(record) if args.save else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwritten: {path}")
    if getattr(args, "record", False):
        lines = history.entries(record)
        history.append(lines)
        print(f"{len(lines)} figures added to {history.PATH}")
