"""Recorded conversations of stock clients, replayed against our server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ggml_rpc.devices.cpu import forced_level, levels
from tests.replay.replayer import Capture, ReplayError, Report, load, replay, row_errors
from tests.support.servers import running_server

CAPTURES = Path(__file__).parent / "captures"

# Stock servers of one protocol but other instruction sets differ by up to 1.1e-4 on these captures, ik_llama.cpp's and
# llama.cpp's by up to 2.0e-3.
TOLERANCE = 5e-4
IK_TOLERANCE = 5e-3
# The captures are of servers with fused multiply-add. Without it every sum rounds otherwise, and what is quantised from
# it may fall on the next code: 1.1e-3 at most.
UNFUSED_TOLERANCE = 2e-3

# Captures that need a server started otherwise have their own tests below.
SPECIAL = {"two-devices", "bigvocab-cold", "bigvocab-warm"}
PLAIN = sorted(p for p in CAPTURES.glob("*/*.json") if p.stem not in SPECIAL)
PROTOCOLS = sorted({p.parent.name for p in PLAIN})
WITH_TWO_DEVICES = sorted(p.parent.name for p in CAPTURES.glob("*/two-devices.json"))
WITH_CACHE = sorted(p.parent.name for p in CAPTURES.glob("*/bigvocab-cold.json"))

# Named, and found out by the server.
WAYS = ("named", "auto")


def check(report: Report, record_report: Callable[[Report], None]) -> None:
    """Record the figures of a replay and hold them against the tolerance."""
    record_report(report)
    assert report.reads, "the capture reads nothing"
    tolerance = UNFUSED_TOLERANCE if (forced_level() or levels()[0]) == "baseline" else TOLERANCE
    if report.name.startswith("ik-"):
        tolerance = IK_TOLERANCE
    bad = [f"{r.tensor}: {r.nmse:.2e}" for r in report.reads if not r.nmse <= tolerance]
    assert not bad, f"{report.name}: rows differ by more than {tolerance}: {', '.join(bad[:5])}"


def capture_id(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def proto(protocol: str, way: str) -> str:
    return protocol if way == "named" else "auto"


@pytest.mark.parametrize("path", PLAIN, ids=capture_id)
def test_capture(path: Path, record_report: Callable[[Report], None]) -> None:
    capture = load(path)
    with running_server(proto=capture.dialect.name) as server:
        check(replay(server.endpoint, capture), record_report)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_captures_under_auto(protocol: str, record_report: Callable[[Report], None]) -> None:
    """One server finds out what the clients of a folder speak, and stays with it."""
    with running_server(proto="auto") as server:
        for i, path in enumerate(p for p in PLAIN if p.parent.name == protocol):
            report = replay(server.endpoint, load(path), auto=True)
            report.name += " (auto)"
            check(report, record_report)
            assert report.refused == 0 or i == 0


def test_all_protocols_one_after_the_other_under_auto(record_report: Callable[[Report], None]) -> None:
    """Each change of version costs a failed attempt for each number that is tried before; going back costs one."""
    order = [*PROTOCOLS, "7.0.0", "8.0.0", "7.0.0"]
    refused = []
    with running_server(proto="auto") as server:
        for protocol in order:
            report = replay(server.endpoint, load(CAPTURES / protocol / "llama-fa0.json"), auto=True)
            report.name += " (all by one)"
            check(report, record_report)
            refused.append(report.refused)
    assert refused[-3:] == [1, 1, 1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", WITH_TWO_DEVICES)
def test_two_devices(protocol: str, way: str, record_report: Callable[[Report], None]) -> None:
    capture = load(CAPTURES / protocol / "two-devices.json")
    with running_server(proto=proto(protocol, way), devices="CPU,CPU") as server:
        check(replay(server.endpoint, capture, auto=way == "auto"), record_report)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("protocol", WITH_CACHE)
def test_cache_cold_then_warm(
    protocol: str,
    way: str,
    tmp_path: Path,
    record_report: Callable[[Report], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first server writes the large tensor to the cache folder, the next one is asked for its hash alone."""
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    for name in ("bigvocab-cold", "bigvocab-warm"):
        capture = load(CAPTURES / protocol / f"{name}.json")
        with running_server(proto=proto(protocol, way), cache=True) as server:
            check(replay(server.endpoint, capture, auto=way == "auto"), record_report)
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert [(p.relative_to(tmp_path).as_posix(), p.stat().st_size) for p in files] == [
            ("rpc/29f9f739ef16cefd", 12288000)
        ]


def test_changed_weights_show() -> None:
    """Control: the comparison notices when the server computes with other weights."""
    capture = load(CAPTURES / "8.0.0" / "llama-fa0.json")
    stream = bytearray(capture.c2s)
    header = capture.dialect.record.size + 9
    sets = [m for c in capture.connections for m in c if m.from_client and m.command.name == "SET_TENSOR"]
    largest = max(sets, key=lambda m: m.length)
    first = largest.offset + 9 + header
    for i in range(first, largest.offset + largest.length, 97):
        stream[i] ^= 0x10
    changed = Capture(capture.name, capture.dialect, bytes(stream), capture.s2c, capture.connections)
    with running_server(proto="8.0.0") as server:
        assert not replay(server.endpoint, changed).worst <= TOLERANCE


def test_wrong_version_shows() -> None:
    """Control: a server that announces another protocol is noticed."""
    with running_server(proto="7.0.0") as server, pytest.raises(ReplayError, match="version"):
        replay(server.endpoint, load(CAPTURES / "8.0.0" / "api.json"))


def test_row_errors() -> None:
    inf, nan = float("inf"), float("nan")
    recorded = np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [-inf, 1.0], [-inf, 1.0], [nan, 1.0]])
    ours = np.array([[1.0, 2.1], [0.0, 0.0], [0.0, 1e-9], [-inf, 1.0], [0.0, 1.0], [nan, 1.0]])
    error = row_errors(ours, recorded)
    assert error[0] == pytest.approx(0.01 / 5)
    assert list(error[1:]) == [0.0, inf, 0.0, inf, 0.0]
