"""The command ``ggml-rpc bench``: how fast a model runs, as llama-bench counts, and how fast the way to servers is."""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .arguments import Parser, choice, integer, several
from .bench_table import FORMATS, Row
from .command import Refused, Signals, execute
from .links import LinkRow
from .model_options import (
    FLASH,
    MAX_COUNT,
    add_computing,
    add_model,
    device_arguments,
    model_path,
    placement_arguments,
)
from .report import Console, describe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ggml_rpc.llm.context import Context
    from ggml_rpc.llm.devices import DeviceSet
    from ggml_rpc.llm.model import Model
    from ggml_rpc.llm.sizing import ContextSettings

PROG = "ggml-rpc bench"
DESCRIPTION = (
    "Measure how fast a model reads a prompt (pp) and generates text (tg), and how fast the way to servers is."
)
EPILOG = """Options that take lists (1,2,4) are tried in all combinations. As in `ggml-rpc run` by default, the 40 best
logits of a token are brought from the device that makes them."""
BEST = 40  # run's default for --top-k


@dataclass(frozen=True)
class Test:
    """Say how many tokens to read and to generate.

    Parameters
    ----------
    n_prompt, n_gen : int
        Tokens.
    """

    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        """Return what llama-bench calls it."""
        return "+".join([f"pp{self.n_prompt}"] * (self.n_prompt > 0) + [f"tg{self.n_gen}"] * (self.n_gen > 0))


@dataclass(frozen=True)
class Setup:
    """One combination of what the lists say.

    Parameters
    ----------
    threads, gpu_layers : int or None
        Of the CPU; on the devices. None: the default, all.
    n_batch, n_ubatch, type_k, type_v, flash_attn
        As in `ContextSettings`.
    """

    threads: int | None
    gpu_layers: int | None
    n_batch: int
    n_ubatch: int
    type_k: str
    type_v: str
    flash_attn: str

    def settings(self, n_ctx: int) -> ContextSettings:
        """Return how to make a context for it."""
        from ggml_rpc.llm.sizing import ContextSettings  # noqa: PLC0415  native modules

        return ContextSettings(
            n_ctx,
            self.n_batch,
            self.n_ubatch,
            self.flash_attn,  # type: ignore[arg-type]
            self.type_k,
            self.type_v,
        )


def prompt_and_gen(text: str) -> Test:
    """Read ``PP,TG``."""
    values = several(integer(1, MAX_COUNT, "number of tokens"))(text)
    if len(values) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not PP,TG, such as 512,128")
    return Test(*values)


def build_parser() -> Parser:
    """Return the parser of ``ggml-rpc bench``."""
    parser = Parser(PROG, DESCRIPTION, EPILOG, usage="%(prog)s -m FILE [--rpc HOST:PORT,...] [options]")
    group = parser.add_argument_group("tests")
    add = group.add_argument
    tokens = integer(0, MAX_COUNT, "number of tokens")
    add("-p", "--n-prompt", type=several(tokens), default=[512], metavar="N,...", help="read N tokens; 0: no (512)")
    add("-n", "--n-gen", type=several(tokens), default=[128], metavar="N,...", help="generate N tokens; 0: no (128)")
    add("-pg", type=prompt_and_gen, action="append", default=[], metavar="PP,TG", help="read PP, then generate TG")
    add(
        *("-r", "--repetitions"),
        type=integer(1, 1000, "number of repetitions"),
        default=5,
        metavar="N",
        help="how often to measure each (5)",
    )
    add("--no-warmup", action="store_true", help="measure the first run too, which sets everything up")
    add("--no-link", action="store_true", help="do not measure the way to the servers")
    add("-o", "--output", choices=FORMATS, default="md", help="format (md)")
    add_model(parser, lists=True)
    group = parser.add_argument_group("context")
    add_computing(group, several, lambda value: [value], integer(1, MAX_COUNT, "number of tokens"))
    group.add_argument(
        *("-fa", "--flash-attn"),
        type=several(choice(FLASH, "choice for flash attention")),
        default=["auto"],
        metavar="LIST",
        help="fused attention: on (1), off (0) or auto (auto)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ggml-rpc bench`` and return its exit status."""
    parser = build_parser()
    options = parser.parse_args(argv)
    tests = [Test(n, 0) for n in options.n_prompt if n] + [Test(0, n) for n in options.n_gen if n] + options.pg
    if not tests:
        parser.error("there is nothing to measure: give -p, -n or -pg")
    logging.basicConfig(level=logging.WARNING, format=f"{PROG}: %(message)s", stream=sys.stderr)
    report = Console(sys.stdout, sys.stderr)
    return execute(PROG, lambda signals: Bench(options, tests, signals, report).run(), report.error)


class Bench:
    """Run all tests in all setups.

    Parameters
    ----------
    options : Namespace
        Of the command line.
    tests : sequence of Test
        What to measure.
    signals : Signals
        Looked at after each token.
    report : Console
        Takes progress.
    """

    def __init__(self, options: argparse.Namespace, tests: Sequence[Test], signals: Signals, report: Console) -> None:
        self._options = options
        self._tests = tests
        self._signals = signals
        self._report = report
        self._rows: list[Row] = []
        self._links: list[LinkRow] = []

    def run(self) -> int:
        """Measure, and print what was measured, even if it ends early."""
        path = model_path(self._options, self._report.fetching)
        # Native modules, which --help does not need.
        from ggml_rpc.llm.devices import open_devices  # noqa: PLC0415
        from ggml_rpc.llm.model import Model  # noqa: PLC0415

        options = self._options
        n_ctx = max(test.n_prompt + test.n_gen for test in self._tests)
        try:
            for threads in options.threads:
                try:
                    devices = open_devices(**{**device_arguments(options), "threads": threads})
                except ValueError as error:
                    raise Refused(str(error)) from error
                with devices:
                    if not options.no_link and not self._links:
                        self._links = [LinkRow.measure(server) for server in devices.servers]
                    for gpu_layers in options.gpu_layers:
                        setups = list(self._setups(threads, gpu_layers))
                        begin = time.perf_counter()
                        placing = {**placement_arguments(options), "n_gpu_layers": gpu_layers}
                        settings = _largest(setups).settings(n_ctx)
                        with Model.open(
                            path, devices, settings=settings, progress=self._report.loading, **placing
                        ) as model:
                            self._report.loaded(model, n_ctx, time.perf_counter() - begin)
                            for setup, test in itertools.product(setups, self._tests):
                                self._measure(model, devices, setup, test)
        finally:
            if self._rows:
                print(FORMATS[options.output](self._rows, self._links))
        return 0

    def _setups(self, threads: int | None, gpu_layers: int | None) -> Iterator[Setup]:
        o = self._options
        for values in itertools.product(o.batch_size, o.ubatch_size, o.cache_type_k, o.cache_type_v, o.flash_attn):
            yield Setup(threads, gpu_layers, *values)

    def _measure(self, model: Model, devices: DeviceSet, setup: Setup, test: Test) -> None:
        import numpy as np  # noqa: PLC0415  slow to import

        tokens = np.random.default_rng(1).integers(0, model.hparams.n_vocab, max(test.n_prompt, test.n_gen))
        if model.tokenizer.adds_bos and model.tokenizer.bos_id is not None:
            tokens[0] = model.tokenizer.bos_id
        seconds = []
        with setup.settings(test.n_prompt + test.n_gen).open(model.weights, devices.host) as context:
            if not self._options.no_warmup:
                self._once(context, Test(test.n_prompt, min(test.n_gen, 1)), tokens)
            for _ in range(self._options.repetitions):
                seconds.append(self._once(context, test, tokens))
        row = _row(model, devices, setup, test, tuple(seconds))
        self._rows.append(row)
        self._report.note(f"{test.name}: {row.mean:.2f} tokens/s")

    def _once(self, context: Context, test: Test, tokens: NDArray[np.int64]) -> float:
        """Return the seconds of one run."""
        from ggml_rpc.llm.ubatch_graph import Best  # noqa: PLC0415

        best = Best(min(BEST, context.weights.hparams.n_vocab))
        context.clear()
        begin = time.perf_counter()
        if test.n_prompt:
            context.decode(tokens[: test.n_prompt], logits="last", best=best)
        for token in tokens[: test.n_gen]:
            self._signals.check()
            context.decode([int(token)], logits="last", best=best)
        return time.perf_counter() - begin


def _largest(setups: Sequence[Setup]) -> Setup:
    """Return the setup that takes the most memory, for which the model leaves room."""
    widths = {"F32": 4, "F16": 3, "BF16": 3, "Q8_0": 2, "Q4_0": 1}
    return max(
        setups,
        key=lambda s: (s.flash_attn == "off", s.n_ubatch, widths[s.type_k] + widths[s.type_v]),
    )


def _row(model: Model, devices: DeviceSet, setup: Setup, test: Test, seconds: tuple[float, ...]) -> Row:
    about = describe(model.file)
    used = [device for device in devices.all if device.name in model.placement.devices]
    backends = dict.fromkeys("RPC" if device.endpoint else device.name for device in used)
    return Row(
        model_filename=str(model.file.file.path),
        model_type=about.name,
        model_size=about.size,
        model_n_params=about.params,
        backends=",".join(backends),
        devices="/".join(device.name for device in used),
        n_threads=setup.threads,
        n_gpu_layers=setup.gpu_layers,
        n_batch=setup.n_batch,
        n_ubatch=setup.n_ubatch,
        type_k=setup.type_k.lower(),
        type_v=setup.type_v.lower(),
        flash_attn=setup.flash_attn,
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        test=test.name,
        seconds=seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
