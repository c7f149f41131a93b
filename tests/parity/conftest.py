"""A stock server and ours, and a table of the largest deviations at the end of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ggml_rpc.devices.cpu import ISA_VARIABLE, levels
from ggml_rpc.peers import prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess
from tests.e2e.conftest import need
from tests.parity.bounds import bound
from tests.support.parity import Deviation, table
from tests.support.servers import running_server

SEEN = pytest.StashKey[list[Deviation]]()


class Servers:
    """A stock server in a process of its own, started again when it has died, and ours in this one."""

    def __init__(self, command: list[str], ours: str) -> None:
        self._command, self.ours = command, ours
        self._stock = self._start()

    def _start(self) -> ServerProcess:
        # An assertion that fails in stock would start a debugger for its backtrace.
        return ServerProcess(self._command, ["-t", "2"], environment={**PATIENT, "GGML_NO_BACKTRACE": "1"})

    @property
    def stock(self) -> str:
        """Return the endpoint of a stock server that is alive."""
        if not self._stock.running():
            self._stock.stop()
            self._stock = self._start()
        return self._stock.endpoint

    def stop(self) -> None:
        """End the stock server."""
        self._stock.stop()


@pytest.fixture(scope="session", params=levels())
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Return both servers, ours at one instruction-set level."""
    peer = need("stock peer 8.0", lambda: prepare_peer("8.0"))
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # read when the server starts; other suites must not see it
            patch.setenv(ISA_VARIABLE, request.param)
            ours = stack.enter_context(running_server(proto="8.0.0", threads=2))
        both = Servers(peer.driver_command(["serve"]), ours.endpoint)
        stack.callback(both.stop)
        yield both


@pytest.fixture
def hold(request: pytest.FixtureRequest) -> Callable[[list[Deviation]], None]:
    """Return a function that keeps deviations for the table and holds them against the bounds."""

    def check(deviations: list[Deviation]) -> None:
        request.config.stash.setdefault(SEEN, []).extend(deviations)
        bad = [d for d in deviations if not d.worst <= bound(d.op, d.types)]
        assert not bad, "\n".join(table(bad))

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    seen = config.stash.get(SEEN, [])
    if seen:
        terminalreporter.section(f"{len(seen)} nodes compared with stock's kernels")
        for line in table(seen):
            terminalreporter.write_line(line)
