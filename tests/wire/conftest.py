"""One server a module and protocol, with a neighbour that must not notice anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ggml_rpc.spec import dialects
from tests.support.servers import RunningServer, running_server
from tests.wire.kinds import KINDS
from tests.wire.session import Neighbour, ServerLog, captured_log


@pytest.fixture(scope="module", params=KINDS)
def dialect(request: pytest.FixtureRequest) -> dialects.Dialect:
    """Return each protocol in turn."""
    return dialects.find(request.param)


@pytest.fixture(scope="module")
def server(dialect: dialects.Dialect) -> Iterator[RunningServer]:
    """Run a server of that protocol."""
    with running_server(proto=dialect.name) as running:
        yield running


@pytest.fixture(scope="module")
def lasting_neighbour(server: RunningServer, dialect: dialects.Dialect) -> Iterator[Neighbour]:
    """Keep one client connected through all tests of the module."""
    client = Neighbour(server.endpoint, dialect)
    yield client
    client.close()


@pytest.fixture
def neighbour(lasting_neighbour: Neighbour) -> Iterator[Neighbour]:
    """Check before and after a test that the lasting client is served."""
    lasting_neighbour.check()
    yield lasting_neighbour
    lasting_neighbour.check()


@pytest.fixture
def log() -> Iterator[ServerLog]:
    """Collect the server's log."""
    with captured_log() as lines:
        yield lines
