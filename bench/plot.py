"""Draw results as PNG for the README: ``python -m bench.plot bench/results/*.json`` (extra ``[bench]``).

A result of ``bench.run`` becomes a chart of ratios, one of ``bench.scaling`` curves over threads, context and batch,
one of ``bench.kernels`` bars beside the floors of the machine. The name of a picture says what it shows and at which
instruction-set level; results of other kinds are passed over.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import OURS, STOCK, TITLES
from .history import level_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
COLOURS = {OURS: "#1f6fb2", STOCK: "#b0b0b0", "prefill": "#1f6fb2", "decode": "#e08a1e", "floor": "#c03030"}
NAMES = {OURS: "ggml-rpc", STOCK: "stock"}
PANELS = (("threads", "threads"), ("context", "tokens in the cache"), ("batch", "tokens decoded at once"))


class PlotError(RuntimeError):
    """Say in one line why nothing can be drawn."""


def machine(record: Record) -> str:
    """Return the line below a title: processor, level, threads and date."""
    where = record["machine"]
    words = [where["processor"], f"{where['cores']} cores", level_of(record), f"{record['threads']} threads"]
    return ", ".join([*words, where["date"][:10]])


def canvas(title: str, record: Record, panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return an empty picture with panels side by side.

    Raises
    ------
    PlotError
        If Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only pictures need it
    except ImportError as error:
        raise PlotError("pictures need Matplotlib: pip install 'ggml-rpc[bench]'") from error
    figure = Figure(figsize=(9, height), layout="constrained")
    figure.suptitle(f"{title}\n{machine(record)}", fontsize=10)
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for axis in axes:
        axis.grid(True, color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes


def draw_ratios(record: Record) -> Figure:
    """Draw how many times faster than the opponent each model is read and continued."""
    figures = {figure["name"]: figure for figure in record["figures"]}
    models = [name for name in record["models"] if any(key.startswith(f"{name} prefill") for key in figures)]
    title = f"Speed over {record['opponent'].split(',')[0]}"
    figure, (axis,) = canvas(title, record, 1, 0.9 + 0.55 * len(models))
    for at, name in enumerate(models):
        for what, shift in (("prefill", -0.19), ("decode", 0.19)):
            key = next(key for key in figures if key.startswith(f"{name} {what} "))
            ratio, ours = figures[key]["ratio"], figures[key]["median"][OURS]
            label = f"{what}, {key.rsplit(' ', 1)[1]} tokens" if at == 0 else None
            axis.barh(at + shift, ratio, 0.36, color=COLOURS[what], label=label)
            axis.annotate(
                f"{ratio:.2f}x  ({ours:.0f} tokens/s)",
                (ratio, at + shift),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
    axis.axvline(1, color="#404040", linewidth=1)
    axis.set_yticks(range(len(models)), [TITLES.get(name, name) for name in models])
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_xlabel("times the opponent's tokens/s, in the same run", fontsize=8)
    axis.grid(False, axis="y")
    if models:
        axis.legend(fontsize=8, loc="lower right", frameon=False)
    return figure


def draw_scaling(record: Record) -> Figure:
    """Draw tokens a second over threads, context and batch."""
    panels = [(key, label) for key, label in PANELS if key in record["series"]]
    title = f"{TITLES.get(record['model'], record['model'])}, beside {record['opponent'].split(',')[0]}"
    figure, axes = canvas(title, record, max(1, len(panels)), 3.4)
    for axis, (key, xlabel) in zip(axes, panels, strict=False):
        series = record["series"][key]
        for what, labels in series["speeds"].items():
            style = {"prefill": "--", "decode": "-"}.get(what, "-")
            for label, curve in labels.items():
                rows = zip(series["x"], curve["median"], curve["low"], curve["high"], strict=True)
                points = [row for row in rows if row[1] is not None]
                if not points:
                    continue
                x, middle, low, high = zip(*points, strict=True)
                name = NAMES[label] if what == "batch" else f"{NAMES[label]}, {what}"
                axis.plot(x, middle, style, marker="o", markersize=3, color=COLOURS[label], label=name)
                axis.fill_between(x, low, high, color=COLOURS[label], alpha=0.2, linewidth=0)
        if "decode_floor_tps" in series:
            floor = series["decode_floor_tps"]
            axis.plot(series["x"], floor, ":", color=COLOURS["floor"], label="memory allows, decode")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda value, _place: f"{value:g}" if f"{value:e}"[0] in "235" else "")
        axis.tick_params(axis="y", which="both", labelsize=8)
        ticks = series["x"]
        if key == "batch":
            axis.set_xscale("log", base=2)
        else:
            ticks = _apart(ticks)
        axis.set_xticks(ticks, [_short(value) for value in ticks])
        axis.tick_params(axis="x", labelrotation=45 if len(ticks) > 6 else 0)
        axis.set_xlabel(xlabel, fontsize=8)
        axis.set_ylabel("tokens/s", fontsize=8)
    labelled = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=7, fontsize=7.5, frameon=False)
    return figure


def draw_kernels(record: Record) -> Figure:
    """Draw what the products of each type reach beside the floors."""
    rates, floors = record["rates"], record["floors"]
    columns = sorted({int(n) for by_n in rates.values() for n in by_n})
    many = [n for n in columns if n > 1]
    figure, axes = canvas("Matrix products, 4096 x 4096", record, 2, 3.6)
    stream, compute = axes
    types = list(rates)
    stream.bar(range(len(types)), [rates[name].get("1", 0.0) / 1e9 for name in types], 0.7, color=COLOURS["decode"])
    stream.axhline(floors["memory"] / 1e9, color=COLOURS["floor"], linestyle=":", label="reading memory")
    stream.set_ylabel("weights read, GB/s (1 column)", fontsize=8)
    width = 0.8 / max(1, len(many))
    for i, n in enumerate(many):
        shade = COLOURS[OURS] if n == max(many) else "#9cc3e4"
        heights = [rates[name].get(str(n), 0.0) / 1e9 for name in types]
        places = [at + (i - (len(many) - 1) / 2) * width for at in range(len(types))]
        compute.bar(places, heights, width, color=shade, label=f"{n} columns")
    for kind, style in (("int8", ":"), ("bf16", "--"), ("f32", "-.")):
        if kind in floors:
            label = f"{kind} on registers"
            compute.axhline(floors[kind] / 1e9, color=COLOURS["floor"], linestyle=style, linewidth=1, label=label)
    compute.set_ylabel("GMAC/s", fontsize=8)
    for axis in axes:
        axis.set_xticks(range(len(types)), types, rotation=60, fontsize=7)
        axis.grid(False, axis="x")
        axis.set_ylim(0, axis.get_ylim()[1] * 1.25)
        axis.legend(fontsize=7, frameon=False, loc="upper right", ncols=2)
    return figure


def _apart(values: Sequence[int]) -> list[int]:
    """Return the values whose labels do not run into each other on a linear axis."""
    kept = list(values[:1])
    for value in values[1:]:
        if value - kept[-1] >= max(values) / 12:
            kept.append(value)
    return kept


def _short(value: int) -> str:
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def drawing(record: Record) -> tuple[str, Callable[[Record], Figure]] | None:
    """Return the picture's name and what draws it, or None if a record is of another kind."""
    if record.get("kind") == "scaling":
        return f"scaling-{level_of(record)}", draw_scaling
    if record.get("kind") == "kernels":
        return f"kernels-{level_of(record)}", draw_kernels
    if "kind" not in record and isinstance(record.get("figures"), list) and record.get("models"):
        return f"ratios-{level_of(record)}-{record.get('opponent_kind', 'native')}", draw_ratios
    return None


def together(earlier: Record, later: Record) -> Record:
    """Return what is drawn of two results with one picture: the later, with what was measured apart on the same day."""
    if earlier["machine"]["date"][:10] != later["machine"]["date"][:10]:
        return later
    if "series" in later:
        return {**later, "series": {**earlier["series"], **later["series"]}}
    if "models" in later:
        models = {**earlier["models"], **later["models"]}
        return {**later, "models": models, "figures": [*earlier["figures"], *later["figures"]]}
    return later


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="results; of several days the last is drawn")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go; docs/images")
    args = parser.parse_args(argv)
    try:
        pictures: dict[str, tuple[Callable[[Record], Figure], Record]] = {}
        for file in args.files:
            record = json.loads(file.read_text())
            found = drawing(record)
            if found is None:
                print(f"{file.name}: nothing to draw")
                continue
            name, draw = found
            pictures[name] = (draw, together(pictures[name][1], record) if name in pictures else record)
        for name, (draw, record) in pictures.items():
            path = args.folder / f"{name}.png"
            args.folder.mkdir(parents=True, exist_ok=True)
            # Without the version of Matplotlib the same result gives the same file.
            draw(record).savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
            print(f"written: {path}, {path.stat().st_size / 1024:.0f} KiB")
    except (PlotError, OSError, ValueError) as error:
        print(f"plot: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
