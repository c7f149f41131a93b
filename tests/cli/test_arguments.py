"""The command lines: every spelling of the stock servers' flags, and one clear line for what is wrong."""

from __future__ import annotations

import json

import pytest

from ggml_rpc import devices
from ggml_rpc.cli import main as commands
from ggml_rpc.cli import server
from ggml_rpc.cli.server import Options, StartError, choose_devices, parse


def spoken(options: Options) -> list[tuple[str, int | None]]:
    return [(protocol.name, protocol.port) for protocol in options.protocols]


def test_defaults_are_those_of_stock() -> None:
    options = parse([])
    assert (options.host, options.port, options.threads) == ("127.0.0.1", 50052, None)
    assert (options.devices, options.cpu, options.cache, options.graph_timeout) == ((), False, False, 0.0)
    assert spoken(options) == [("auto", None)]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        *[([flag, "192.0.2.1"], "host", "192.0.2.1") for flag in ("-H", "--host", "--Host")],
        (["-H", "[::1]"], "host", "::1"),
        *[([flag, "1234"], "port", 1234) for flag in ("-p", "-P", "--port", "--Port")],
        (["--port=0"], "port", 0),
        *[([flag, "3"], "threads", 3) for flag in ("-t", "--threads")],
        *[([flag, "CUDA0,CPU"], "devices", ("CUDA0", "CPU")) for flag in ("-d", "-dev", "--device")],
        (["-d", "CPU/CPU"], "devices", ("CPU", "CPU")),
        (["-d", ",CPU,/,"], "devices", ("CPU",)),
        *[([flag], "cpu", True) for flag in ("-cpu", "--cpu")],
        *[([flag], "cache", True) for flag in ("-c", "--cache")],
        (["--graph-timeout", "2.5"], "graph_timeout", 2.5),
        (["--numa", "isolate"], "numa", "isolate"),
    ],
)
def test_flag(words: list[str], field: str, value: object) -> None:
    assert getattr(parse(words), field) == value


def test_protocols_with_ports() -> None:
    assert spoken(parse(["--proto", "7.0"])) == [("7.0.0", None)]
    assert spoken(parse(["--proto", "8.0,7.0@50053"])) == [("8.0.0", None), ("7.0.0", 50053)]
    assert spoken(parse(["--proto", "auto,7.0@50053"])) == [("auto", None), ("7.0.0", 50053)]
    assert spoken(parse(["--proto", "3.6.0@2025-12-05@50054"])) == [("3.6.0@2025-12-05", 50054)]
    assert spoken(parse(["--proto", "3.6.0@2025-12-05"])) == [("3.6.0@2025-12-05", None)]
    assert spoken(parse(["--proto", "7.0@0,8.0@0"])) == [("7.0.0", 0), ("8.0.0", 0)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-p", "65536"], "65536"),
        (["-p", "-1"], "-1"),
        (["-p", "x"], "'x'"),
        (["-p"], "expected one argument"),
        (["-t", "0"], "'0'"),
        (["-t", "1025"], "1024"),
        (["-t", "\u0663"], "threads"),
        (["-d", ","], "empty"),
        (["-H", ""], "host"),
        (["--graph-timeout", "-1"], "'-1'"),
        (["--graph-timeout", "inf"], "inf"),
        (["--graph-timeout", "1e300"], "1e300"),
        (["--graph-timeout", "1e-9"], "1e-9"),
        (["--proto", "8.0@" + "9" * 5000], "is no port"),
        (["--graph-timeout", "soon"], "soon"),
        (["--numa", "both"], "both"),
        (["--proto", "9.9"], "known are auto, 2.0.0, "),
        (["--proto", "8.0,7.0"], "port of its own"),
        (["--proto", "8.0@99999"], "99999"),
        (["--proto", "8.0,7.0@50052"], "share a port"),
        (["-p", "7", "--proto", "8.0,7.0@7"], "share a port"),
        (["--hos", "x"], "--hos"),
        (["CPU"], "CPU"),
    ],
)
def test_wrong_command_line_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("ggml-rpc-server: error: ")
    assert says in err


def test_device_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_devices((), cpu=False) == ["CPU"]
    assert choose_devices(("cpu", "CPU"), cpu=True) == ["CPU", "CPU"]
    with pytest.raises(StartError, match=r"unknown device: CUDA7\navailable devices:\n  CPU: .* MiB free\)"):
        choose_devices(("CPU", "CUDA7"), cpu=False)
    monkeypatch.setattr(devices, "available", lambda: ["CUDA0", "CUDA1", "CPU"])
    assert choose_devices((), cpu=False) == ["CUDA0", "CUDA1"]
    assert choose_devices((), cpu=True) == ["CUDA0", "CUDA1", "CPU"]
    assert choose_devices(("cuda1",), cpu=True) == ["CUDA1", "CPU"]


def test_warning_names_the_host() -> None:
    assert "'192.0.2.1' is not a loopback address" in server.exposure_warning("192.0.2.1")


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        commands.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in commands.COMMANDS)
    with pytest.raises(SystemExit) as end:
        commands.main(["nothing"])
    assert end.value.code == 2
    capsys.readouterr()
    for words, says in (([], "no command: run, bench"), (["--nothing"], "unrecognized arguments: --nothing")):
        with pytest.raises(SystemExit) as end:
            commands.main(words)
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    # A subcommand gets its own --help.
    with pytest.raises(SystemExit) as end:
        commands.main(["devices", "--help"])
    assert end.value.code == 0
    assert "usage: ggml-rpc devices" in capsys.readouterr().out


def test_devices_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["devices", "--json"]) == 0
    (device,) = [d for d in json.loads(capsys.readouterr().out) if d["name"] == "CPU"]
    assert 0 < device["free_bytes"] <= device["total_bytes"]
    assert device["level"] == device["levels"][0]
    assert not device["accelerator"]
