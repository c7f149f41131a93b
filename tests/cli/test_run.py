"""``ggml-rpc run``: the text that the API gives, events for programs, one line for what is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.cli import main as commands
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.peers import prepare_model
from ggml_rpc.peers.process import ServerProcess, own_server_command
from ggml_rpc.server import Server
from tests.e2e.conftest import need
from tests.llm.hub_server import serve_hub
from tests.llm.models import MODELS, cached
from tests.llm.remote import drained, servers

from .running import SMALL, one_line, run, started

PROG = "ggml-rpc run"
PROMPT = "The quick brown fox"
MESSAGES = ("Who are you?", "And what else?")
N = 12
DEAD = "127.0.0.1:1"


class Pair(list[Server]):
    """Two servers."""

    @property
    def rpc(self) -> str:
        """Return what ``--rpc`` takes."""
        return ",".join(server.endpoint for server in self)


@pytest.fixture(scope="module")
def path() -> Path:
    return cached(MODELS["llama-bpe"], "F32")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Run two servers."""
    with servers(2) as running:
        yield Pair(running)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, n_ctx=256, n_batch=64, n_ubatch=32, threads=1) as model:
        yield model


def answer(llm: LLM, prompt: str = PROMPT, n: int = N, stop: tuple[str, ...] = (), **sampling: Any) -> str:
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return llm.generate(prompt, max_tokens=n, sampling=params, stop=stop, ignore_eos=True).finish()


def call(*words: str | Path) -> int:
    """Run the command in this process."""
    return commands.main(["run", *SMALL, "-n", str(N), *map(str, words)])


# ---- Text ------------------------------------------------------------------------------------------------------------


def test_text_is_that_of_the_api(path: Path, llm: LLM, pair: Pair) -> None:
    done = run("run", "-m", path, "-p", PROMPT, "-n", str(N), "--rpc", pair.rpc, "-ts", "1,1", *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{PROMPT}{answer(llm)}\n"
    assert "\x1b" not in done.stdout + done.stderr
    for number, server in enumerate(pair):
        assert f"RPC{number} ({server.endpoint}): " in done.stderr
        assert drained(server)
    assert "tokens/s" in done.stderr
    assert "layers 0-1" in done.stderr


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (["-p", r"one\ntwo"], "one\ntwo"),
        (["-p", r"one\ntwo", "--no-escape"], r"one\ntwo"),
        (["-p", ""], ""),
    ],
)
def test_prompts(words: list[str], prompt: str, path: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("-m", path, *words) == 0
    assert capsys.readouterr().out == f"{prompt}{answer(llm, prompt)}\n"


def test_prompt_from_a_file(path: Path, llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("from a\\n file\n")
    assert call("-m", path, "-f", file, "--no-display-prompt") == 0
    assert capsys.readouterr().out == answer(llm, "from a\\n file") + "\n"


def test_prompt_from_standard_input(
    path: Path, llm: LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))
    assert call("-m", path, "-f", "-") == 0
    assert capsys.readouterr().out == f"{PROMPT}{answer(llm)}\n"


def test_options_reach_the_sampler(path: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--temp", "1.5", "--top-k", "9", "--seed", "5", "--repeat-penalty", "1.3", "-l", "300+2"]
    assert call("-m", path, "-p", PROMPT, *words) == 0
    expected = answer(llm, temperature=1.5, top_k=9, seed=5, repeat_penalty=1.3, logit_bias={300: 2.0})
    captured = capsys.readouterr()
    assert captured.out == f"{PROMPT}{expected}\n"
    assert "seed 5\n" in captured.err
    assert expected != answer(llm)


def test_reverse_prompt_ends_the_answer(path: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    whole = answer(llm)
    stop = whole[len(whole) // 2 :][:2]
    assert call("-m", path, "-p", PROMPT, "-r", stop, "--no-escape", "--no-display-prompt") == 0
    assert capsys.readouterr().out == f"{whole[: whole.index(stop)]}\n"


@pytest.mark.parametrize(
    "case",
    [
        ([], "RPC0 ({0}): "),
        (["-mg", "1"], "RPC1 ({1}): layers 0-2 and output, "),
        (["-mg", "RPC0"], "RPC0 ({0}): layers 0-2 and output, "),
        (["-ngl", "2", "-dev", "RPC1"], "CPU: layers 0-1, "),
        (["-dev", "none"], "CPU: layers 0-2 and output, "),
        (["-ot", "ffn_down=CPU"], "CPU: single weights, "),
    ],
)
def test_placement(
    case: tuple[list[str], str], path: Path, llm: LLM, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    words, says = case
    assert call("-m", path, "-p", PROMPT, "--rpc", pair.rpc, *words) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{PROMPT}{answer(llm)}\n"
    assert says.format(*(server.endpoint for server in pair)) in captured.err


def test_model_from_a_hub(path: Path, llm: LLM, tmp_path: Path) -> None:
    with serve_hub() as hub:
        hub.repos["user/repo"] = {"tiny-Q4_0.gguf": path.read_bytes()}
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "*", "HF_TOKEN": ""}
        words = ("run", "-hf", "user/repo:q4_0", "-p", PROMPT, "-n", str(N), *SMALL)
        done = run(*words, **variables)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{PROMPT}{answer(llm)}\n"
        assert "tiny-Q4_0.gguf: " in done.stderr
        assert run(*words, **variables).stdout == done.stdout
        assert len(hub.bodies()) == 1


@pytest.mark.peer
def test_gemma_on_two_servers(pair: Pair) -> None:
    model: Path = need("model", prepare_model)
    words = ("run", "-m", model, "-p", "The capital of France is", "-n", "16", "--temp", "0", "-c", "256", "-t", "1")
    done = run(*words, "--rpc", pair.rpc, "-ts", "1,1")
    assert done.returncode == 0, done.stderr
    with LLM(model, n_ctx=256, threads=1) as llm:
        params = SamplingParams(temperature=0)
        expected = llm.generate("The capital of France is", max_tokens=16, sampling=params).finish()
    assert done.stdout == f"The capital of France is{expected}\n"
    assert "gemma3 270M Q4_K_M, " in done.stderr


# ---- Conversations ---------------------------------------------------------------------------------------------------


def conversation(llm: LLM, messages: tuple[str, ...], system: str | None = None) -> list[str]:
    """Return the answers in turn."""
    history = [{"role": "system", "content": system}] if system else []
    out = []
    for text in messages:
        history.append({"role": "user", "content": text})
        options: dict[str, Any] = {"sampling": SamplingParams(temperature=0), "ignore_eos": True}
        out.append(llm.chat(history, max_tokens=N, **options).finish())
        history.append({"role": "assistant", "content": out[-1]})
    return out


def test_conversation_from_a_pipe(path: Path, llm: LLM) -> None:
    lines = [
        "/clear",
        MESSAGES[0],
        "",
        MESSAGES[1][:4] + "\\",
        MESSAGES[1][4:],
        "/regen",
        "/nonsense/",
        "/exit",
        "never",
    ]
    done = run("run", "-m", path, "-cnv", "-sys", "Be brief.", "-n", str(N), *SMALL, text="\n".join(lines))
    assert done.returncode == 0, done.stderr
    first, second, third = conversation(
        llm, (MESSAGES[0], MESSAGES[1][:4] + "\n" + MESSAGES[1][4:], "/nonsense/"), "Be brief."
    )
    assert done.stdout == f"{first}\n{second}\n{second}\n{third}\n"
    assert "the model file has no chat template: ChatML is used" in done.stderr


def test_one_question(path: Path, llm: LLM) -> None:
    done = run("run", "-m", path, "-cnv", "-st", "-p", MESSAGES[0], "-n", str(N), *SMALL, text="never\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{conversation(llm, MESSAGES[:1])[0]}\n"


def test_a_conversation_that_does_not_fit_is_an_error(path: Path) -> None:
    done = run("run", "-m", path, "-cnv", "-n", str(N), *SMALL, text="word " * 400 + "\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{PROG}: the prompt has ")


# ---- Events ----------------------------------------------------------------------------------------------------------

NUMBER = (int, float)
FIELDS: dict[str, dict[str, Any]] = {
    "load": {"device": str, "endpoint": str, "bytes": int, "total_bytes": int, "cached_bytes": int},
    "placement": {"model": dict, "context": int, "devices": list, "seconds": float},
    "prompt": {"text": str},
    "token": {"id": int, "text": str},
    "done": {"reason": str, "stop_string": (str, type(None)), "text": str, "seed": int, "timings": dict},
    "error": {"message": str},
    "redistribution": {"cause": str, "lost": list, "devices": list, "tokens": int, "seconds": float},
}
TIMINGS = {
    "prompt_tokens",
    "reused_tokens",
    "prompt_seconds",
    "prompt_rate",
    "generated_tokens",
    "generate_seconds",
    "generate_rate",
}


def events(text: str) -> list[dict[str, Any]]:
    """Return the events, held against their fields."""
    out = [json.loads(line) for line in text.splitlines()]
    for event in out:
        fields = FIELDS[event["event"]]
        assert event.keys() == {"event", *fields}
        assert all(isinstance(event[name], kind) for name, kind in fields.items()), event
    return out


def test_events(path: Path, llm: LLM, pair: Pair) -> None:
    words = ("run", "-m", path, "-p", PROMPT, "-n", str(N), "--rpc", pair.rpc, "-ts", "1,1", "--json", *SMALL)
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = events(done.stdout)
    kinds = [event["event"] for event in found]
    loads = kinds.count("load")
    assert kinds == ["load"] * loads + ["placement", "prompt"] + ["token"] * N + ["done"]
    last = {event["device"]: event for event in found[:loads]}
    assert set(last) == {"RPC0", "RPC1"}
    assert all(event["bytes"] == event["total_bytes"] for event in last.values())
    placement = found[loads]
    assert [d["layers"] for d in placement["devices"]] == [[0, 1], [2]]
    assert [d["output"] for d in placement["devices"]] == [False, True]
    assert placement["model"]["name"].startswith("llama ")
    assert placement["model"]["bytes"] >= sum(d["weights_bytes"] for d in placement["devices"]) > 0
    end = found[-1]
    assert end["text"] == "".join(event["text"] for event in found if event["event"] == "token") == answer(llm)
    assert end["reason"] == "length"
    assert end["timings"].keys() == TIMINGS
    assert end["timings"]["generated_tokens"] == N - 1


def test_an_error_is_an_event_too(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("-m", path, "-p", PROMPT, "--json", "--rpc", DEAD) == 1
    captured = capsys.readouterr()
    (event,) = events(captured.out)
    assert event["message"] == one_line(captured.err, PROG)


# ---- Losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_loss", ["error", "redistribute"])
def test_loss_of_a_server(on_loss: str, path: Path, llm: LLM) -> None:
    n = 150
    with ServerProcess(own_server_command(), ["-t", "1"]) as victim, servers(1) as (survivor,):
        rpc = f"{victim.endpoint},{survivor.endpoint}"
        words = ["run", "-m", path, "-p", PROMPT, "-n", str(n), "--rpc", rpc, "-ts", "1,1", *SMALL]
        with started([*words, "--json", "--on-loss", on_loss]) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if '"token"' in line:
                    break
            os.kill(victim.pid, signal.SIGKILL)
            rest, err = process.communicate(timeout=60)
            found = events("".join(lines) + rest)
            if on_loss == "error":
                assert process.returncode == 1
                assert found[-1]["event"] == "error"
                assert victim.endpoint in one_line(err, PROG)
            else:
                assert process.returncode == 0, err
                (event,) = [event for event in found if event["event"] == "redistribution"]
                assert event["lost"] == ["RPC0"]
                assert [d["device"] for d in event["devices"]] == ["RPC1"]
                assert found[-1]["text"] == answer(llm, n=n)
        assert drained(survivor)


# ---- What is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-m", "{tmp}/absent.gguf"], "absent.gguf cannot be read: No such file"),
        (["-m", "{tmp}"], "is no regular file"),
        (["-m", "{tmp}/text.gguf"], "is no GGUF file"),
        (["-m", "{tmp}/empty.gguf"], "empty.gguf"),
        (["-m", "{tmp}/short.gguf"], "is incomplete"),
        (["-hf", "name"], "write USER/REPO"),
        (["-m", "{model}", "-f", "{tmp}/absent"], "absent: No such file"),
        (["-m", "{model}", "-f", "{tmp}/short.gguf"], "is no text in UTF-8"),
        (["-m", "{model}", "-ts", "a,b"], "no list of numbers"),
        (["-m", "{model}", "-ts", "1,2"], "has 2 entries, but the devices that take layers are 1: CPU"),
        (["-m", "{model}", "-ts", "0"], "gives nothing"),
        (["-m", "{model}", "-dev", "RPC7"], "unknown device 'RPC7'"),
        (["-m", "{model}", "-dev", "CPU,CPU"], "twice"),
        (["-m", "{model}", "-mg", "1"], "no main device 1: this run has 0: CPU"),
        (["-m", "{model}", "-ot", "ffn"], "REGEX=DEVICE"),
        (["-m", "{model}", "-ot", "nothing_like_it=CPU"], "matches no weight"),
        (["-m", "{model}", "-ot", "(=CPU"], "no regular expression"),
        (["-m", "{model}", "-ctv", "q8_0", "-fa", "off"], "need flash attention"),
        (["-m", "{model}", "--rpc", DEAD], f"cannot connect to {DEAD}: Connection refused; is a server running there?"),
        (["-m", "{model}", "--rpc", f"{DEAD},127.0.0.1:2"], "cannot connect to 127.0.0.1:"),
        (["-m", "{model}", "--rpc", "a,,b"], "empty entry"),
        (["-m", "{model}", "--rpc", "host:port"], "'port' is no port"),
        (["-m", "{tmp}/text.gguf", "--rpc", DEAD, "-ts", "a", "-dev", "X"], ""),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], says: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "short.gguf").write_bytes(path.read_bytes()[:5000])
    given = [word.format(tmp=tmp_path, model=path) if "{" in word else word for word in words]
    prompt = [] if "-f" in given else ["-p", PROMPT]
    assert call(*given, *prompt) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in one_line(captured.err, PROG)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-p", "word " * 400], "shorten it, or take a larger context (-c, n_ctx)"),
        (["-p", PROMPT, "-l", "512+1"], "names token 512, but the model's last one is 511"),
    ],
)
def test_what_only_the_loaded_model_knows(
    words: list[str], says: str, path: Path, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-m", path, "--rpc", pair.rpc, *words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith(f"{PROG}: ")
    assert says in line
    assert all(drained(server) for server in pair)


def test_what_does_not_fit_is_shown_in_a_table(path: Path, pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["run", "-m", str(path), "-p", PROMPT, "-c", "16777216", "--rpc", pair.rpc]) == 1
    first, head, *rows = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{PROG}: the model does not fit: RPC")
    assert head.split()[:3] == ["device", "free", "weights"]
    assert {row.split()[0] for row in rows} == {"RPC0", "RPC1"}


def test_a_missing_package_is_named(path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['tokenizers'] = None\n"
        "from ggml_rpc.cli.main import main\n"
        f"sys.exit(main(['run', '-p', 'x', '-m', {str(path)!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    expected = "a vocabulary of merges needs the package tokenizers: pip install 'ggml-rpc[llm]'"
    assert one_line(done.stderr, PROG) == expected
