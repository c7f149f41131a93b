"""Every hostile act closes its own connection, is named in the log, and disturbs nobody."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from ggml_rpc.spec import dialects
from tests.support.rawclient import RawClient
from tests.support.servers import RunningServer
from tests.wire import frame_cases, graph_cases, tensor_cases
from tests.wire.frame_cases import Case
from tests.wire.session import Attacker, Neighbour, ServerLog

RULE = re.compile(r"\w{4,}.*\w{2,}")
"""A rule is at least a phrase."""


def attack(server: RunningServer, dialect: dialects.Dialect, case: Case) -> bool:
    """Do what the case does on a connection of its own; return whether the server closed it."""
    with RawClient(server.endpoint, dialect) as client:
        attacker = Attacker(client)
        try:
            case.act(attacker)
            return client.closed_by_peer()
        except ConnectionError:
            return True


def line_is_clear(line: str, case: Case) -> bool:
    """Return whether a log line names the command, the tensor and a rule."""
    command = re.search(rf"\b({case.command})\b", line)
    if command is None:
        return False
    if case.tensor and f"'{case.tensor}'" not in line:
        return False
    return bool(RULE.search(line[command.end() :].replace(f"'{case.tensor}'", "")))


def run_all(
    cases: Iterable[Case],
    server: RunningServer,
    dialect: dialects.Dialect,
    neighbour: Neighbour,
    log: ServerLog,
) -> None:
    """Run cases one after the other and report all that went wrong at once."""
    wrong = []
    for case in cases:
        log.clear()
        if not attack(server, dialect, case):
            wrong.append(f"{case.name}: not refused")
            continue
        try:
            log.wait_for(lambda line, case=case: line_is_clear(line, case), timeout=3.0)  # type: ignore[misc]
        except AssertionError as error:
            wrong.append(f"{case.name}: {error}")
        neighbour.check()
    assert not wrong, f"{len(wrong)} of the cases:\n" + "\n".join(wrong[:20])


FAMILIES = {
    "frames: wrong lengths": frame_cases.wrong_lengths,
    "frames: unknown commands": frame_cases.unknown_commands,
    "frames: devices": frame_cases.devices,
    "frames: handles": frame_cases.handles,
    "frames: session rules": frame_cases.session_rules,
    "tensors: records": tensor_cases.records,
    "tensors: ranges": tensor_cases.ranges,
    "tensors: rows": tensor_cases.grids,
    "graphs: format": graph_cases.formats,
    "graphs: memory": graph_cases.memory,
    "graphs: ops": graph_cases.ops,
    "graphs: parameters": graph_cases.parameters,
    "graphs: index values": graph_cases.indices,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_refused(
    family: str, server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour, log: ServerLog
) -> None:
    run_all(FAMILIES[family](dialect), server, dialect, neighbour, log)


def test_another_sessions_buffer(
    server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour, log: ServerLog
) -> None:
    with RawClient(server.endpoint, dialect) as owner:
        run_all(list(tensor_cases.foreign(dialect, owner)), server, dialect, neighbour, log)


def test_first_message_must_be_hello(server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour) -> None:
    for name, data in frame_cases.first_messages(dialect).items():
        with RawClient(server.endpoint, dialect, hello=False) as client:
            client.send_raw(data)
            assert client.closed_by_peer(), name
        neighbour.check()


def test_random_bytes(server: RunningServer, dialect: dialects.Dialect, neighbour: Neighbour) -> None:
    """Random frames after HELLO: whatever they do, the neighbour's work stays right."""
    for seed in range(200):
        with RawClient(server.endpoint, dialect) as client:
            try:
                client.send_raw(frame_cases.random_bytes(seed, dialect))
            except ConnectionError:
                continue
        if seed % 10 == 0:
            neighbour.check()
