"""A row of seeded hostile connections leaves the server as it was."""

from __future__ import annotations

import os

from ggml_rpc.spec import dialects
from tests.wire.kinds import heavy
from tests.wire.soak import soak

# The acceptance run takes 10000.
CONNECTIONS = int(os.environ.get("GGML_RPC_SOAK_CONNECTIONS", "400"))
SEED = int(os.environ.get("GGML_RPC_SOAK_SEED", "1"))
MAY_GROW = 16 << 20


@heavy
def test_soak(dialect: dialects.Dialect) -> None:
    before, after = soak(CONNECTIONS, SEED, dialect)
    assert after - before <= MAY_GROW, f"{before} bytes before, {after} after"
