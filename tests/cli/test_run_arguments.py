"""Command lines of the commands that run models: llama.cpp's spellings, and one clear line for what is wrong."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable

import pytest

from ggml_rpc.cli import bench, perplexity, run
from ggml_rpc.cli import main as commands
from ggml_rpc.cli.model_options import CACHE_TYPES, context_arguments, device_arguments, placement_arguments
from ggml_rpc.llm.kv_cache import CACHE_TYPES as KNOWN_CACHE_TYPES
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.llm.sizing import ContextSettings

BASE = ["-m", "x.gguf", "-p", "text"]


def test_defaults_are_those_of_the_runtime() -> None:
    options = run.parse(BASE)
    assert options.sampling == SamplingParams()
    assert ContextSettings(**context_arguments(options)) == ContextSettings()
    assert dict(device_arguments(options)) == {"rpc": "", "threads": None, "timeout": 60.0, "dialect": None}
    nothing = dict.fromkeys(("n_gpu_layers", "tensor_split", "device", "main_device"))
    assert dict(placement_arguments(options)) == {**nothing, "override_tensor": [], "check": True}
    assert set(CACHE_TYPES.values()) == set(KNOWN_CACHE_TYPES)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        *[([flag, "7"], "predict", 7) for flag in ("-n", "--predict", "--n-predict")],
        (["-n", "-1"], "predict", None),
        *[([flag, "512"], "ctx_size", 512) for flag in ("-c", "--ctx-size")],
        *[([flag, "9"], "batch_size", 9) for flag in ("-b", "--batch-size")],
        *[([flag, "9"], "ubatch_size", 9) for flag in ("-ub", "--ubatch-size")],
        *[([flag, "2"], "threads", 2) for flag in ("-t", "--threads")],
        *[([flag, "99"], "gpu_layers", 99) for flag in ("-ngl", "--gpu-layers", "--n-gpu-layers")],
        *[(["-ngl", word], "gpu_layers", None) for word in ("all", "auto", "-1")],
        *[([flag, "3,1"], "tensor_split", "3,1") for flag in ("-ts", "--tensor-split")],
        *[([flag, "1"], "main_gpu", "1") for flag in ("-mg", "--main-gpu")],
        *[([flag, "RPC1,CPU"], "device", "RPC1,CPU") for flag in ("-dev", "--device")],
        *[([flag, "a=CPU"], "override_tensor", ["a=CPU"]) for flag in ("-ot", "--override-tensor")],
        (["--rpc", "a:1,b:2"], "rpc", "a:1,b:2"),
        *[([flag, "q8_0"], "cache_type_k", "Q8_0") for flag in ("-ctk", "--cache-type-k")],
        *[([flag, "BF16"], "cache_type_v", "BF16") for flag in ("-ctv", "--cache-type-v")],
        *[([flag, "off"], "flash_attn", "off") for flag in ("-fa", "--flash-attn")],
        (["-fa"], "flash_attn", "on"),
        (["-fa", "1"], "flash_attn", "on"),
        *[([flag, "END"], "reverse_prompt", ["END"]) for flag in ("-r", "--reverse-prompt")],
        (["-r", r"a\n", "-r", "b"], "reverse_prompt", ["a\n", "b"]),
        (["--ignore-eos"], "ignore_eos", True),
        (["--no-warmup"], "no_warmup", True),
        (["--no-display-prompt"], "no_display_prompt", True),
        *[([flag], "conversation", True) for flag in ("-cnv", "--conversation")],
        *[([flag], "conversation", False) for flag in ("-no-cnv", "--no-conversation")],
        (["-cnv", "-sys", "be brief"], "system_prompt", "be brief"),
        (["-cnv", "-st"], "single_turn", True),
        (["--json"], "json", True),
        (["--on-loss", "redistribute"], "on_loss", "redistribute"),
        (["--timeout", "2.5"], "timeout", 2.5),
        (["--dialect", "7.0"], "dialect", "7.0.0"),
        (["--no-check"], "no_check", True),
    ],
)
def test_flag(words: list[str], name: str, value: object) -> None:
    assert getattr(run.parse([*BASE, *words]), name) == value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        *[([flag, "7"], "seed", 7) for flag in ("-s", "--seed")],
        (["-s", "-1"], "seed", None),
        (["-s", str(2**64 - 1)], "seed", 2**64 - 1),
        (["--temp", "0"], "temperature", 0.0),
        (["--top-k", "1"], "top_k", 1),
        (["--top-p", "0.5"], "top_p", 0.5),
        (["--min-p", "0.5"], "min_p", 0.5),
        (["--typical", "0.5"], "typical_p", 0.5),
        (["--repeat-penalty", "1.1"], "repeat_penalty", 1.1),
        (["--repeat-last-n", "-1"], "repeat_last_n", -1),
        (["--presence-penalty", "-0.5"], "presence_penalty", -0.5),
        (["--frequency-penalty", "0.5"], "frequency_penalty", 0.5),
        (["-l", "15043+1.5", "--logit-bias", "7-inf"], "logit_bias", {15043: 1.5, 7: -math.inf}),
    ],
)
def test_sampling_flag(words: list[str], name: str, value: object) -> None:
    assert getattr(run.parse([*BASE, *words]).sampling, name) == value


def test_models_by_name() -> None:
    for flag in ("-hf", "-hfr", "--hf-repo"):
        assert run.parse([flag, "user/repo:Q4_0", "-p", "x"]).hf_repo == "user/repo:Q4_0"


def test_overrides_are_separated_by_commas() -> None:
    options = run.parse([*BASE, "-ot", "a=CPU,b=RPC0", "-ot", "c=CPU"])
    assert placement_arguments(options)["override_tensor"] == ["a=CPU", "b=RPC0", "c=CPU"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"a\nb\tc\rd", "a\nb\tc\rd"),
        (r"\'\"\\n", "'\"\\n"),
        (r"\x41\x9\xZZ\q", "A\t\\xZZ\\q"),
        ("end\\", "end\\"),
    ],
)
def test_escapes(text: str, read: str) -> None:
    assert run.parse(["-m", "x", "-p", text]).prompt == read
    assert run.parse(["-m", "x", "-e", "-p", text]).prompt == read
    assert run.parse(["-m", "x", "--no-escape", "-p", text]).prompt == text


@pytest.mark.parametrize(
    ("main", "words", "says"),
    [
        (run.main, ["-p", "x"], "-m/--model"),
        (run.main, ["-m", "x", "-hf", "a/b", "-p", "x"], "not allowed with"),
        (run.main, ["-m", "x"], "there is no prompt: give -p TEXT or -f FILE"),
        (run.main, ["-m", "x", "-no-cnv"], "there is no prompt"),
        (run.main, [*BASE, "-f", "y"], "not allowed with"),
        (run.main, [*BASE, "-n", "0"], "0 tokens"),
        (run.main, [*BASE, "-n", "x"], "'x'"),
        (run.main, [*BASE, "-n", "-2"], "'-2'"),
        (run.main, [*BASE, "-c", "-1"], "'-1'"),
        (run.main, [*BASE, "-b", "0"], "'0'"),
        (run.main, [*BASE, "-ub", "\u0663"], "number of tokens"),
        (run.main, [*BASE, "-t", "0"], "1024"),
        (run.main, [*BASE, "-ngl", "many"], "all or auto"),
        (run.main, [*BASE, "-fa", "maybe"], "on, off, auto"),
        (run.main, [*BASE, "-ctk", "q3"], "q8_0, q4_0"),
        (run.main, [*BASE, "--temp", "nan"], "'nan' is no number"),
        (run.main, [*BASE, "--top-p", "2"], "top_p must be between 0 and 1"),
        (run.main, [*BASE, "--repeat-penalty", "0"], "above 0"),
        (run.main, [*BASE, "-s", "-2"], "'-2'"),
        (run.main, [*BASE, "-l", "7"], "TOKEN+BIAS"),
        (run.main, [*BASE, "-l", "7+x"], "TOKEN+BIAS"),
        (run.main, [*BASE, "-l", "7+inf"], "logit_bias of token 7"),
        (run.main, [*BASE, "-r", ""], "empty"),
        (run.main, [*BASE, "-sys", "x"], "add -cnv"),
        (run.main, [*BASE, "-st"], "add -cnv"),
        (run.main, [*BASE, "-cnv", "-no-cnv"], "not allowed with"),
        (run.main, [*BASE, "--dialect", "9.9"], "known are 2.0.0"),
        (run.main, [*BASE, "--timeout", "0"], "above 0"),
        (run.main, [*BASE, "--on-loss", "cry"], "redistribute"),
        (run.main, [*BASE, "--ctx", "5"], "--ctx"),
        (run.main, [*BASE, "text"], "text"),
        (bench.main, ["-m", "x", "-p", "0", "-n", "0"], "nothing to measure"),
        (bench.main, ["-m", "x", "-pg", "5"], "PP,TG"),
        (bench.main, ["-m", "x", "-pg", "5,0"], "'0'"),
        (bench.main, ["-m", "x", "-r", "0"], "'0'"),
        (bench.main, ["-m", "x", "-o", "xml"], "xml"),
        (bench.main, ["-m", "x", "-fa", "0,2"], "'2'"),
        (perplexity.main, ["-m", "x"], "-f/--file"),
        (perplexity.main, ["-m", "x", "-f", "y", "--chunks", "0"], "0 chunks"),
    ],
)
def test_wrong_command_line_is_one_line(
    main: Callable[[list[str]], int],
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert ": error: " in err
    assert says in err


def test_bench_takes_lists() -> None:
    options = bench.build_parser().parse_args(
        [
            "-m",
            "x",
            "-p",
            "16,32",
            "-n",
            "0",
            "-pg",
            "8,4",
            "-fa",
            "0,1",
            "-ctk",
            "f16,q8_0",
            "-ngl",
            "0,all",
            "-t",
            "1,2",
        ]
    )
    assert (options.n_prompt, options.n_gen, options.pg) == ([16, 32], [0], [bench.Test(8, 4)])
    assert (options.flash_attn, options.cache_type_k) == (["off", "on"], ["F16", "Q8_0"])
    assert (options.gpu_layers, options.threads) == ([0, None], [1, 2])
    assert (options.batch_size, options.ubatch_size, options.cache_type_v) == ([2048], [512], ["F16"])


@pytest.mark.parametrize("parser", [run.build_parser(), bench.build_parser(), perplexity.build_parser()])
def test_every_flag_has_a_help_text(parser: argparse.ArgumentParser) -> None:
    assert all(action.help for action in parser._actions)
    # The last column of a narrow terminal is 80.
    assert max(map(len, parser.format_help().split("examples:")[0].splitlines())) < 120


def test_help_loads_next_to_nothing() -> None:
    code = (
        "import sys, contextlib\n"
        "from ggml_rpc.cli.main import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main([command, '--help'])\n"
        "heavy = {'numpy', 'rich', 'tokenizers', 'gguf', 'jinja2', 'huggingface_hub'} & set(sys.modules)\n"
        "native = [m for m in sys.modules if m.startswith('ggml_rpc.') and m.rpartition('.')[2].startswith('_')]\n"
        "assert not heavy and native == ['ggml_rpc._version'], (heavy, native)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: ggml-rpc {command}" in done.stdout for command in commands.COMMANDS)
