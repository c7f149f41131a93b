"""Results of a benchmark as tables: Markdown, CSV or JSON, with llama-bench's names."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ggml_rpc import __version__

from .links import LinkRow
from .text import count, size, table

# Columns that stand in the Markdown table only where they are of interest: the heading, and the default.
_OPTIONAL = {
    "n_threads": ("threads", None),
    "n_batch": ("n_batch", 2048),
    "n_ubatch": ("n_ubatch", 512),
    "type_k": ("type_k", "f16"),
    "type_v": ("type_v", "f16"),
    "flash_attn": ("fa", "auto"),
}


@dataclass(frozen=True)
class Row:
    """Hold what one test in one setup gave; names as in llama-bench's output.

    Parameters
    ----------
    seconds : tuple of float
        Of each repetition.
    """

    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    backends: str
    devices: str
    n_threads: int | None
    n_gpu_layers: int | None
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: str
    n_prompt: int
    n_gen: int
    test: str
    seconds: tuple[float, ...]

    @property
    def rates(self) -> list[float]:
        """Return the tokens a second of each repetition."""
        return [(self.n_prompt + self.n_gen) / seconds for seconds in self.seconds]

    @property
    def mean(self) -> float:
        """Return their mean."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Return their standard deviation; 0 of a single one."""
        return _deviation(self.rates)

    def fields(self) -> dict[str, Any]:
        """Return the row for programs."""
        named = {name: value for name, value in vars(self).items() if name not in ("seconds", "test")}
        ns = [seconds * 1e9 for seconds in self.seconds]
        return {
            "build_version": __version__,
            **named,
            "test_time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "avg_ns": round(statistics.fmean(ns)),
            "stddev_ns": round(_deviation(ns)),
            "avg_ts": self.mean,
            "stddev_ts": self.deviation,
        }


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def as_markdown(rows: Sequence[Row], links: Sequence[LinkRow]) -> str:
    """Return tables for people."""
    shown = [name for name, (_, default) in _OPTIONAL.items() if {getattr(row, name) for row in rows} != {default}]
    head = ["model", "size", "params", "backend", "ngl", *(_OPTIONAL[name][0] for name in shown), "test", "t/s"]
    body = [
        [
            row.model_type,
            size(row.model_size),
            count(row.model_n_params),
            row.backends,
            "all" if row.n_gpu_layers is None else str(row.n_gpu_layers),
            *(_text(getattr(row, name)) for name in shown),
            row.test,
            f"{row.mean:.2f} ± {row.deviation:.2f}",
        ]
        for row in rows
    ]
    out = table(head, body)
    if links:
        head = ["server", "protocol", "round trip us", "to it GB/s", "from it GB/s"]
        out += "\n\n" + table(
            head,
            [
                [
                    link.endpoint,
                    link.protocol,
                    f"{link.latency_us:.0f}",
                    *(
                        "-" if v is None else f"{v / 1e9:.2f}"
                        for v in (link.upload_bytes_per_s, link.download_bytes_per_s)
                    ),
                ]
                for link in links
            ],
        )
    return out


def _text(value: object) -> str:
    return "default" if value is None else str(value)


def as_csv(rows: Sequence[Row], links: Sequence[LinkRow]) -> str:
    """Return a line for each row; of several servers, values are separated by `/`."""
    out = io.StringIO()
    lines = [{**row.fields(), **_joined(links)} for row in rows]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue().removesuffix("\n")


def _joined(links: Sequence[LinkRow]) -> dict[str, str]:
    names = ("endpoint", "protocol", "latency_us", "upload_bytes_per_s", "download_bytes_per_s")
    return {f"link_{name}": "/".join(_text(getattr(link, name)) for link in links) for name in names}


def as_json(rows: Sequence[Row], links: Sequence[LinkRow]) -> str:
    """Return a list with an object for each row."""
    ways = [vars(link) for link in links]
    return json.dumps(
        [
            {
                **row.fields(),
                "samples_ns": [round(seconds * 1e9) for seconds in row.seconds],
                "samples_ts": row.rates,
                "links": ways,
            }
            for row in rows
        ],
        indent=2,
    )


FORMATS: dict[str, Callable[[Sequence[Row], Sequence[LinkRow]], str]] = {
    "md": as_markdown,
    "csv": as_csv,
    "json": as_json,
}
