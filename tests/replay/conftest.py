"""Collect the figures of every replay and print them as a table at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.replay.replayer import Report

LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def record_report(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Callable[[Report], None]:
    """Return a function that keeps a replay's figures for the table and for the JUnit report."""

    def record(report: Report) -> None:
        record_property("worst_nmse", report.worst)
        request.config.stash.setdefault(LINES, []).append(report.line())

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    lines = config.stash.get(LINES, [])
    if lines:
        terminalreporter.section("replayed conversations")
        for line in lines:
            terminalreporter.write_line(line)
