"""``ggml-rpc bench``: tests, setups and formats as llama-bench has them, and the way to servers."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import statistics
from pathlib import Path

import pytest

from ggml_rpc.cli import main as commands
from ggml_rpc.cli.bench_table import LinkRow, Row, as_markdown
from tests.llm.models import MODELS, cached
from tests.llm.remote import drained, servers

from .running import one_line, started

SMALL = ["-ub", "32", "-r", "2", "-t", "1"]
# Columns of llama-bench that programs read.
STOCK = {
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "backends",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "flash_attn",
    "n_prompt",
    "n_gen",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
}


@pytest.fixture(scope="module")
def path() -> Path:
    return cached(MODELS["llama-bpe"], "F32")


def test_setups_and_tests_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with servers(2) as pair:
        rpc = ",".join(server.endpoint for server in pair)
        words = ["-p", "16,48", "-n", "3", "-pg", "8,2", "-fa", "0,1", "-ctk", "f16,q8_0", "-ts", "1,1", "-o", "json"]
        assert commands.main(["bench", "-m", str(path), "--rpc", rpc, *words, *SMALL]) == 0
        assert all(drained(server) for server in pair)
    rows = json.loads(capsys.readouterr().out)
    tests = [(16, 0), (48, 0), (0, 3), (8, 2)]
    setups = [("f16", "off"), ("f16", "on"), ("q8_0", "off"), ("q8_0", "on")]
    assert [(r["type_k"], r["flash_attn"], r["n_prompt"], r["n_gen"]) for r in rows] == [
        (*setup, *test) for setup in setups for test in tests
    ]
    for row in rows:
        assert row.keys() >= STOCK
        n = row["n_prompt"] + row["n_gen"]
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["avg_ts"] == pytest.approx(statistics.fmean(row["samples_ts"]))
        assert row["stddev_ts"] == pytest.approx(statistics.stdev(row["samples_ts"]))
        assert row["samples_ts"] == pytest.approx([n / ns * 1e9 for ns in row["samples_ns"]], rel=1e-3)
        assert (row["backends"], row["devices"]) == ("RPC", "RPC0/RPC1")
        assert [link["endpoint"] for link in row["links"]] == rpc.split(",")
        assert all(link["latency_us"] > 0 < link["upload_bytes_per_s"] for link in row["links"])


def test_markdown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with servers(1) as (server,):
        words = ["-p", "16", "-n", "2", "-ngl", "0,all", "--rpc", server.endpoint]
        assert commands.main(["bench", "-m", str(path), *words, *SMALL]) == 0
    captured = capsys.readouterr()
    tables = captured.out.split("\n\n")
    head, _rule, *rows = tables[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
    assert cells[0] == ["model", "size", "params", "backend", "ngl", "threads", "n_ubatch", "test", "t/s"]
    assert [row[3:8] for row in cells[1:]] == [
        ["CPU", "0", "1", "32", "pp16"],
        ["CPU", "0", "1", "32", "tg2"],
        ["RPC", "all", "1", "32", "pp16"],
        ["RPC", "all", "1", "32", "tg2"],
    ]
    assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", row[8]) for row in cells[1:])
    assert len({len(line) for line in tables[0].splitlines()}) == 1
    assert server.endpoint in tables[1]
    assert "pp16: " in captured.err


def test_csv(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["bench", "-m", str(path), "-p", "8", "-n", "0", "-o", "csv", "--no-warmup", *SMALL]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row.keys() >= STOCK
    assert (row["n_prompt"], row["n_gen"], row["backends"], row["link_endpoint"]) == ("8", "0", "CPU", "")


def test_a_server_without_memory_has_no_rates() -> None:
    row = Row(*["x"] * 2, 1, 1, *["x"] * 2, None, None, 1, 1, *["x"] * 3, 4, 0, "pp4", (2.0,))
    assert (row.mean, row.deviation) == (2.0, 0.0)
    assert as_markdown([row], [LinkRow("a:1", "8.0.0", 20.0, None, None)]).splitlines()[-1].count(" - ") == 2


def test_what_was_measured_is_printed_after_an_interrupt(path: Path) -> None:
    with servers(1) as (server,):
        words = ["bench", "-m", path, "--rpc", server.endpoint, "-p", "8", "-n", "100000", *SMALL]
        with started(words) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("pp8: "):
                    break
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert "pp8" in out
        assert "tg" not in out
        assert drained(server)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "{tmp}/absent.gguf"], "No such file"),
        (["-m", "{tmp}"], "no regular file"),
        (["-m", "{model}", "--rpc", "127.0.0.1:1"], "is a server running there?"),
        (["-m", "{model}", "--rpc", "a,,b"], "empty entry"),
        (["-m", "{model}", "-dev", "RPC0"], "unknown device"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], says: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.main(["bench", *SMALL, *(word.format(tmp=tmp_path, model=path) for word in words)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in one_line(captured.err, "ggml-rpc bench")
