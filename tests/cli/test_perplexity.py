"""``ggml-rpc perplexity``: the estimate of the API, printed as llama-perplexity does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ggml_rpc.cli import main as commands
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.perplexity import Score, perplexity
from ggml_rpc.llm.sizing import ContextSettings
from tests.llm.models import MODELS, cached
from tests.llm.models.vocab import TEXT
from tests.llm.remote import drained, servers

from .running import one_line

SMALL = ["-c", "64", "-ub", "32", "-t", "1"]
CHUNKS = 3


@pytest.fixture(scope="module")
def path() -> Path:
    return cached(MODELS["llama-bpe"], "F32")


@pytest.fixture(scope="module")
def expected(path: Path) -> list[Score]:
    settings = ContextSettings(n_ctx=64, n_ubatch=32)
    with Model.open(path, settings=settings) as model:
        return list(perplexity(model, TEXT.read_text(), n_ctx=64, n_windows=CHUNKS))


def test_text(path: Path, expected: list[Score], capsys: pytest.CaptureFixture[str]) -> None:
    with servers(2) as pair:
        rpc = ",".join(server.endpoint for server in pair)
        words = ["-m", str(path), "-f", str(TEXT), "--chunks", str(CHUNKS), "--rpc", rpc, "-ts", "1,1", *SMALL]
        assert commands.main(["perplexity", *words]) == 0
        assert all(drained(server) for server in pair)
    captured = capsys.readouterr()
    steps, final = captured.out.splitlines()
    assert [float(value) for value in re.findall(r"\](\d+\.\d{4}),", steps)] == pytest.approx(
        [score.perplexity for score in expected], abs=2e-4, rel=1e-5
    )
    assert re.findall(r"\[(\d)\]", steps) == ["1", "2", "3"]
    match = re.fullmatch(r"Final estimate: PPL = (\d+\.\d{4}) \+/- (\d+\.\d{5})", final)
    assert match is not None
    assert float(match[1]) == pytest.approx(expected[-1].perplexity, abs=2e-4, rel=1e-5)
    assert float(match[2]) == pytest.approx(expected[-1].error, rel=1e-3)
    assert "3 chunks of 64 tokens" in captured.err


def test_events(path: Path, expected: list[Score], capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["perplexity", "-m", str(path), "-f", str(TEXT), "--chunks", "3", "--json", *SMALL]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert events[0]["event"] == "load"
    events = [event for event in events if event["event"] != "load"]
    assert [event["event"] for event in events] == ["placement", *["chunk"] * CHUNKS, "done"]
    for event, score in zip(events[1:], [*expected, expected[-1]], strict=True):
        assert event["perplexity"] == pytest.approx(score.perplexity, rel=1e-5)
        assert (event["chunk"], event["chunks"], event["tokens"]) == (score.window + 1, CHUNKS, score.n_tokens)
        assert event["seconds"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-f", "{tmp}/absent.txt"], "cannot read"),
        (["-f", "{model}"], "no text in UTF-8"),
        (["-f", str(TEXT), "--rpc", "127.0.0.1:1"], "is a server running there?"),
        (["-f", str(TEXT), "-dev", "RPC0"], "unknown device"),
        (["-f", str(TEXT), "--rpc", "a:b"], "no port"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], says: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(tmp=tmp_path, model=path) for word in words]
    assert commands.main(["perplexity", "-m", str(path), *given, *SMALL]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in one_line(captured.err, "ggml-rpc perplexity")


def test_a_text_that_is_too_short(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("few words")
    assert commands.main(["perplexity", "-m", str(path), "-f", str(tmp_path / "short.txt"), *SMALL]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fewer than two chunks of 64" in captured.err.splitlines()[-1]
