"""Options of the commands that run a model: their parsers, and what they are for the runtime."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggml_rpc.spec import dialects

from .arguments import MAX_THREADS, Parser, choice, integer, number, seconds, several
from .command import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ggml_rpc.llm.sampling import SamplingParams

MAX_COUNT = 2**31 - 1
CACHE_TYPES = {"f16": "F16", "bf16": "BF16", "f32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0"}
FLASH = {"on": "on", "off": "off", "auto": "auto", "1": "on", "0": "off"}
_ALL = ("all", "auto")
_BIAS = re.compile(r"(?P<token>[0-9]{1,9})(?P<value>[+-].+)")


def layers(text: str) -> int | None:
    """Read a number of layers; None for all."""
    if text.lower() in _ALL:
        return None
    value = integer(-MAX_COUNT, MAX_COUNT, "number of layers, all or auto")(text)
    return None if value < 0 else value


def logit_bias(text: str) -> tuple[int, float]:
    """Read a token and what is added to its logit, such as ``15043+1`` or ``15043-inf``."""
    match = _BIAS.fullmatch(text)
    try:
        if match is not None:
            return int(match["token"]), float(match["value"])
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no TOKEN+BIAS or TOKEN-BIAS, such as 15043+1 or 15043-inf")


def seed(text: str) -> int | None:
    """Read a seed; None for a new one each time."""
    value = integer(-1, 2**64 - 1, "seed")(text)
    return None if value < 0 else value


def dialect(text: str) -> str:
    """Read the name of a protocol table."""
    try:
        return dialects.find(text).name
    except KeyError as error:
        raise argparse.ArgumentTypeError(error.args[0]) from error


def add_model(parser: Parser, *, lists: bool = False) -> None:
    """Add which model to run, and where; with `lists`, numbers of layers and threads to try in turn."""
    model = parser.add_argument_group("model")
    which = model.add_mutually_exclusive_group(required=True)
    which.add_argument("-m", "--model", metavar="FILE", help="GGUF file; of a split model the first part")
    which.add_argument(
        *("-hf", "-hfr", "--hf-repo"),
        metavar="USER/REPO[:QUANT]",
        help="fetch the model from Hugging Face, once: it is kept; such as ggml-org/gemma-3-270m-GGUF:Q8_0",
    )
    model.add_argument("--no-check", action="store_true", help="do not look for NaN and infinite weights")
    threads = integer(1, MAX_THREADS, "number of threads")
    where = parser.add_argument_group("devices (`ggml-rpc devices --rpc ...` lists those of servers)")
    add = where.add_argument
    add(
        "--rpc",
        default="",
        metavar="HOST:PORT,...",
        help="servers, ours or stock ones; their devices are RPC0, RPC1, ... in this order (none: this machine alone)",
    )
    add(
        *("-ngl", "--gpu-layers", "--n-gpu-layers"),
        type=several(layers) if lists else layers,
        default=[None] if lists else None,
        metavar="N",
        help="how many of the last layers, the output counted as one, go to the devices; this machine's CPU takes the"
        " others (all)",
    )
    add(
        *("-ts", "--tensor-split"),
        metavar="N,N,...",
        help="share of the layers, the output counted as one, for each device, such as 3,1 (in"
        " proportion to free memory)",
    )
    add(
        *("-dev", "--device"),
        metavar="NAME,...",
        help="devices that take layers, in this order, such as RPC1,RPC0; none: this machine's CPU (all but that CPU)",
    )
    add(
        *("-mg", "--main-gpu"),
        metavar="N",
        help="put all on one of the devices: its place in their order, from 0, or its name",
    )
    add(
        *("-ot", "--override-tensor"),
        action="append",
        default=[],
        metavar="REGEX=DEVICE,...",
        help="put weights by name on a device, such as ffn_down=CPU; may be repeated",
    )
    add(
        *("-t", "--threads"),
        type=several(threads) if lists else threads,
        default=[None] if lists else None,
        metavar="N",
        help="threads of this machine's CPU (half the cores)",
    )
    add(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long a server may owe an answer without any progress before it counts as lost (60)",
    )
    add(
        "--dialect",
        type=dialect,
        metavar="NAME",
        help="protocol of the servers, where the version they announce stands for several: a name as"
        " `ggml-rpc-server --proto` takes it (found out)",
    )


def add_context(parser: Parser, *, n_ctx: int) -> None:
    """Add how the model's memory of the text is laid out."""
    group = parser.add_argument_group("context")
    group.add_argument(
        *("-c", "--ctx-size"),
        type=integer(0, MAX_COUNT, "number of tokens"),
        default=n_ctx,
        metavar="N",
        help=f"tokens of prompt and answer together, rounded up to a multiple of 256 ({n_ctx}); 0: as many as the model"
        " was trained for",
    )
    tokens = integer(1, MAX_COUNT, "number of tokens")
    add_computing(group, lambda read: read, lambda value: value, tokens)
    group.add_argument(
        *("-fa", "--flash-attn"),
        nargs="?",
        const="on",
        default="auto",
        type=choice(FLASH, "choice for flash attention"),
        metavar="on|off|auto",
        help="compute attention in one fused step, which takes less memory (auto: where all devices can)",
    )


def add_computing(
    group: argparse._ArgumentGroup,
    reader: Callable[[Callable[[str], Any]], Callable[[str], Any]],
    default: Callable[[Any], Any],
    tokens: Callable[[str], int],
) -> None:
    """Add how many tokens are computed at a time, and the types of the cache.

    Parameters
    ----------
    group : argument group
        Takes the options.
    reader, default : callable
        Turn the reader of one value, and a default, into those of the option: a list, say.
    tokens : callable
        Reads a number of tokens.
    """
    add = group.add_argument
    add(
        *("-b", "--batch-size"),
        type=reader(tokens),
        default=default(2048),
        metavar="N",
        help="most tokens of a prompt that are under way over the devices (2048)",
    )
    add(
        *("-ub", "--ubatch-size"),
        type=reader(tokens),
        default=default(512),
        metavar="N",
        help="most tokens of one step (512)",
    )
    for flags, what in ((("-ctk", "--cache-type-k"), "keys"), (("-ctv", "--cache-type-v"), "values")):
        add(
            *flags,
            type=reader(choice(CACHE_TYPES, "type for keys or values")),
            default=default("F16"),
            metavar="TYPE",
            help=f"how attention's {what} are kept: {', '.join(CACHE_TYPES)} (f16)",
        )


def add_sampling(parser: Parser) -> None:
    """Add how the next token is chosen; defaults are llama-cli's."""
    group = parser.add_argument_group("sampling (defaults are llama-cli's)")
    add = group.add_argument
    count = integer(0, MAX_COUNT, "number of tokens")
    add("-s", "--seed", type=seed, metavar="N", help="the same seed gives the same text (-1: a new one each time)")
    add("--temp", type=number, default=0.8, metavar="N", help="how freely to choose; 0: always the likeliest (0.8)")
    add("--top-k", type=count, default=40, metavar="N", help="the N likeliest; 0: all (40)")
    add("--top-p", type=number, default=0.95, metavar="N", help="the likeliest that hold this share; 1: all (0.95)")
    add(
        "--min-p",
        type=number,
        default=0.05,
        metavar="N",
        help="drop below this share of the likeliest (0.05)",
    )
    add(
        "--typical",
        type=number,
        default=1.0,
        metavar="N",
        help="the most typical that hold this share; 1: all (1)",
    )
    add("--repeat-penalty", type=number, default=1.0, metavar="N", help="make repetition less likely (1: off)")
    add(
        "--repeat-last-n",
        type=integer(-1, MAX_COUNT, "number of tokens"),
        default=64,
        metavar="N",
        help="tokens that count as recent for penalties; -1: all (64)",
    )
    add("--presence-penalty", type=number, default=0.0, metavar="N", help="taken once from recent tokens (0: off)")
    add("--frequency-penalty", type=number, default=0.0, metavar="N", help="taken for each recurrence (0: off)")
    add(
        *("-l", "--logit-bias"),
        type=logit_bias,
        action="append",
        default=[],
        metavar="TOKEN+BIAS",
        help="make a token likelier or less likely, such as 15043+1 or 15043-inf; may be repeated",
    )


def sampling_params(options: argparse.Namespace, parser: Parser) -> SamplingParams:
    """Return the choice of tokens that a command line asks for; a value out of range ends the program."""
    from ggml_rpc.llm.sampling import SamplingParams  # noqa: PLC0415  native modules, which --help does not need

    try:
        return SamplingParams(
            temperature=options.temp,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            typical_p=options.typical,
            repeat_penalty=options.repeat_penalty,
            repeat_last_n=options.repeat_last_n,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=options.seed,
            logit_bias=dict(options.logit_bias),
        )
    except ValueError as error:
        parser.error(str(error))


def overrides(given: list[str]) -> list[str]:
    """Return the entries of all ``--override-tensor``; commas separate them, as in llama.cpp."""
    return [entry for text in given for entry in text.split(",")]


def device_arguments(options: argparse.Namespace) -> Mapping[str, Any]:
    """Return what `open_devices` takes."""
    return {
        "rpc": options.rpc,
        "threads": options.threads,
        "timeout": options.timeout,
        "dialect": options.dialect,
    }


def placement_arguments(options: argparse.Namespace) -> Mapping[str, Any]:
    """Return what `Model.open` and `LLM` take of a model's place."""
    return {
        "n_gpu_layers": options.gpu_layers,
        "tensor_split": options.tensor_split,
        "device": options.device,
        "main_device": options.main_gpu,
        "override_tensor": overrides(options.override_tensor),
        "check": not options.no_check,
    }


def context_arguments(options: argparse.Namespace) -> Mapping[str, Any]:
    """Return what `ContextSettings` and `LLM` take of the context."""
    return {
        "n_ctx": options.ctx_size,
        "n_batch": options.batch_size,
        "n_ubatch": options.ubatch_size,
        "flash_attn": options.flash_attn,
        "type_k": options.cache_type_k,
        "type_v": options.cache_type_v,
    }


def model_path(options: argparse.Namespace, fetching: Callable[[str, int, int | None], None]) -> Path:
    """Return the model's file, fetched if a repository was named.

    Raises
    ------
    RpcError
        If it cannot be had.
    """
    if options.model is not None:
        return Path(options.model)
    from ggml_rpc.llm.hub import fetch  # noqa: PLC0415

    return fetch(options.hf_repo, progress=fetching)


def read_text(name: str) -> str:
    """Return a file's text.

    Raises
    ------
    Refused
        If it cannot be read, or is no UTF-8.
    """
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise Refused(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Refused(f"{name} is no text in UTF-8 (byte {error.start}): convert it first") from error
