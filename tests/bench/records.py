"""Small results of the measurements, as their programs write them."""

from __future__ import annotations

import copy
from typing import Any

MACHINE = {
    "processor": "Test CPU",
    "isa": ["avx2", "avx512f", "avx512_vnni"],
    "cores": 2,
    "commit": "0123456789ab",
    "date": "2026-11-20T10:00:00+00:00",
}


def figure(name: str, unit: str, ours: list[float], stock: list[float]) -> dict[str, Any]:
    """Return a figure of two or more turns, as `Figure.record` does."""
    middle = {"ours": sorted(ours)[len(ours) // 2], "stock": sorted(stock)[len(stock) // 2]}
    ratio = middle["ours"] / middle["stock"]
    ratio = 1 / ratio if unit in ("s", "us") else ratio
    return {"name": name, "unit": unit, "median": middle, "ratio": ratio, "turns": {"ours": ours, "stock": stock}}


RUN: dict[str, Any] = {
    "machine": MACHINE,
    "level": "avx512",
    "opponent": "llama.cpp of llama-cpp-python 0.3.36, native build",
    "opponent_kind": "native",
    "threads": 2,
    "prefill": 512,
    "decode": 128,
    "command": "python -m bench.run",
    "models": {
        "tinyllama-Q4_0": {"decode_floor_tps": 50.0, "decode_share": 0.76},
        "gemma": {"decode_floor_tps": 120.5, "decode_share": 0.5},
    },
    "figures": [
        figure("round trip", "us", [20.0, 10.0, 30.0], [40.0, 40.0, 40.0]),
        figure("tinyllama-Q4_0 load", "s", [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
        figure("tinyllama-Q4_0 prefill 512", "t/s", [300.0, 300.0, 301.0], [50.0, 50.0, 50.0]),
        figure("tinyllama-Q4_0 decode 128", "t/s", [38.0, 38.0, 38.0], [30.0, 32.0, 29.0]),
        figure("gemma prefill 512", "t/s", [1800.0], [400.0]),
        figure("gemma decode 128", "t/s", [60.0], [50.0]),
    ],
}

_CURVE = {"median": [10.0, 20.0], "low": [9.0, 19.0], "high": [11.0, 21.0]}
_HOLE = {"median": [None, 20.0], "low": [None, 19.0], "high": [None, 21.0]}
SCALING: dict[str, Any] = {
    "kind": "scaling",
    "machine": MACHINE,
    "level": "avx512",
    "opponent": RUN["opponent"],
    "model": "gemma",
    "threads": 2,
    "series": {
        "threads": {
            "x": [1, 2],
            "speeds": {"prefill": {"ours": _CURVE, "stock": _CURVE}, "decode": {"ours": _CURVE, "stock": _CURVE}},
            "decode_floor_tps": [30.0, 40.0],
        },
        "context": {"x": [0, 8192], "speeds": {"prefill": {"ours": _HOLE, "stock": _HOLE}}},
        "batch": {"x": [1, 512], "speeds": {"batch": {"ours": _CURVE, "stock": _CURVE}}},
    },
}

KERNELS: dict[str, Any] = {
    "kind": "kernels",
    "machine": MACHINE,
    "level": "avx2",
    "threads": 2,
    "floors": {"memory": 30e9, "int8": 200e9, "f32": 100e9},
    "rates": {"Q4_0": {"1": 20e9, "8": 50e9, "512": 150e9}, "F16": {"1": 28e9, "512": 90e9}},
}


def later(record: dict[str, Any], day: int, **ratios: float) -> dict[str, Any]:
    """Return a record of a later day; `ratios` maps the ends of figures' names to what ours is multiplied by."""
    new = copy.deepcopy(record)
    new["machine"]["date"] = f"2026-11-{day}T10:00:00+00:00"
    for item in new["figures"]:
        for end, factor in ratios.items():
            if item["name"].endswith(end.replace("_", " ")):
                ours = [value * factor for value in item["turns"]["ours"]]
                item.update(figure(item["name"], item["unit"], ours, item["turns"]["stock"]))
    return new
