"""``ggml-rpc devices --rpc``: all servers, whatever one of them does."""

from __future__ import annotations

import json
import re
import socket

import pytest

from ggml_rpc.cli import main as commands
from tests.llm.remote import drained, servers

PROG = "ggml-rpc devices"
DEAD = "127.0.0.1:1"


def test_lists_devices_by_the_names_that_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with servers(2) as pair:
        assert commands.main(["devices", "--rpc", ",".join(server.endpoint for server in pair)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert all(drained(server) for server in pair)
    assert len(lines) == 4
    for number, server in enumerate(pair):
        head, device = lines[2 * number : 2 * number + 2]
        way = r"round trip \d+ us, \d+\.\d\d GB/s to it, \d+\.\d\d GB/s from it"
        assert re.fullmatch(rf"{server.endpoint}: protocol 8\.0\.0, {way}", head)
        assert re.fullmatch(rf"  RPC{number}: \d+ MiB, \d+ MiB free", device)


def test_one_that_fails_does_not_hide_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    # One that is not there, one that takes connections and says nothing, one that works.
    with socket.create_server(("127.0.0.1", 0)) as silent, servers(1) as (server,):
        mute = f"127.0.0.1:{silent.getsockname()[1]}"
        assert commands.main(["devices", "--rpc", f"{DEAD}, {mute},{server.endpoint}", "--timeout", "1"]) == 1
        captured = capsys.readouterr()
        assert "  RPC0: " in captured.out
        first, second = captured.err.splitlines()
        assert first == f"{PROG}: cannot connect to {DEAD}: Connection refused; is a server running there?"
        assert second.startswith(f"{PROG}: ")
        assert mute in second
        assert commands.main(["devices", "--rpc", f"{DEAD},{server.endpoint}", "--json"]) == 1
        captured = capsys.readouterr()
        dead, device = json.loads(captured.out)
        assert dead == {"endpoint": DEAD, "error": first.removeprefix(f"{PROG}: ")}
        assert (device["name"], device["endpoint"]) == ("RPC0", server.endpoint)
        assert 0 < device["free_bytes"] <= device["total_bytes"]
        assert device["upload_bytes_per_s"] > 0


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--rpc", "a,,b"], 1, "empty entry"),
        (["--rpc", "127.0.0.1:x"], 1, "'x' is no port"),
        (["--rpc", DEAD, "--timeout", "0"], 2, "above 0"),
        (["--rpc"], 2, "expected one argument"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        got = commands.main(["devices", *words])
    except SystemExit as end:
        got = end.code
    captured = capsys.readouterr()
    assert got == status
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"{PROG}: ")
    assert says in captured.err


def test_an_interrupt_before_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ggml_rpc.cli.devices.build_parser", interrupted)
    assert commands.main(["devices"]) == 130
