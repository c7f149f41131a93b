"""The installed package imports, computes and has its commands. Also run against finished wheels."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ggml_rpc
from ggml_rpc.devices.cpu import levels

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DEVICES = ("-m", "ggml_rpc.cli.main", "devices")


def test_typed_and_versioned() -> None:
    assert (Path(ggml_rpc.__file__).parent / "py.typed").exists()
    assert re.match(r"\d+\.\d+\.\d+", ggml_rpc.__version__)


def test_small_graph_at_every_level(run: Run, small_graph: str) -> None:
    done = run(sys.executable, small_graph)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [ggml_rpc.__version__, *levels()]
    assert levels()[-1] == "baseline"


@pytest.mark.parametrize("module", ["server", "main"])
def test_commands_answer_without_native_code(module: str, run: Run) -> None:
    code = (
        "import sys\n"
        f"from ggml_rpc.cli.{module} import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "native = [m for m in sys.modules if m.startswith('ggml_rpc.') and m.rpartition('.')[2].startswith('_')]\n"
        "assert native == ['ggml_rpc._version'], native\n"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert ggml_rpc.__version__ in done.stdout


def test_only_what_needs_an_extra_asks_for_it(run: Run) -> None:
    """`pip install ggml-rpc` alone serves, connects and runs models whose tokeniser is our own."""
    code = (
        "import sys\n"
        "for name in ('gguf', 'huggingface_hub', 'jinja2', 'rich', 'tokenizers'):\n    sys.modules[name] = None\n"
        "import ggml_rpc\n"
        "for name in ggml_rpc.__all__:\n    getattr(ggml_rpc, name)\n"
        "import ggml_rpc.cli.run\n"
        "from ggml_rpc.errors import RpcError\n"
        "from ggml_rpc.graph.quantise import quantise\n"
        "from ggml_rpc.llm.tokenizer import Tokenizer\n"
        "merges = {'model': 'gpt2', 'pre': 'gpt-2', 'tokens': ['a', 'b', 'ab'], 'merges': ['a b']}\n"
        "for use in (\n"
        "    lambda: quantise(__import__('numpy').zeros((1, 32), 'f4'), 'Q8_0'),\n"
        "    lambda: Tokenizer.from_metadata({f'tokenizer.ggml.{k}': v for k, v in merges.items()}),\n"
        "):\n"
        "    try:\n        use()\n    except RpcError as error:\n        print(error)\n"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition(" needs the package ")[2] for line in done.stdout.splitlines()] == [
        "gguf: pip install 'ggml-rpc[llm]'",
        "tokenizers: pip install 'ggml-rpc[llm]'",
    ]


def test_devices_command(run: Run) -> None:
    done = run(sys.executable, *DEVICES)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  CPU: .+ \(\d+ MiB, \d+ MiB free\)$", done.stdout, re.MULTILINE)
    assert f"instruction set: {levels()[0]}" in done.stdout


def test_a_level_can_be_forced(run: Run) -> None:
    assert "instruction set: baseline" in run(sys.executable, *DEVICES, GGML_RPC_ISA="baseline").stdout
    refused = run(sys.executable, *DEVICES, GGML_RPC_ISA="avx9000")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "avx9000" in refused.stderr
