"""Replay a conversation against a stock server whose results are disturbed, to see what that does to the logits.

The nodes are computed one by one. The result of every node of the named ops is multiplied by 1 + EPS g, g of variance 1
and a function of the element's bits and a seed, so that equal elements stay equal. The recorded replies are the
undisturbed server's: what a replay prints is what the model makes of the noise. It tells how closely two servers can
agree at all whose arithmetic differs by EPS.

From the command line, with the endpoint of a stock server: `python -m tests.support.perturb STOCK EPS OP[,OP...]
CAPTURE...` prints the worst row of each of `--seeds` replays, sorted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ggml_rpc.spec.commands import Command
from ggml_rpc.spec.types import TYPE_BY_ID
from tests.replay.replayer import REQUEST_HEADER, Capture, Connection, Report, load
from tests.support.parity import fetch, label, one_node_graphs, store
from tests.support.rawclient import split_endpoint


def noise(bits: np.ndarray, seed: int) -> np.ndarray:
    """Return numbers of mean 0 and variance 1, one for each pattern of 32 bits (splitmix64)."""
    x = bits.astype(np.uint64) + np.uint64(seed << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    uniform = (x >> np.uint64(11)).astype(np.float64) / 2**53
    return (uniform - 0.5) * 12**0.5


def disturbed(data: bytes, eps: float, seed: int) -> bytes:
    """Return a result of f32 elements, each times 1 + eps g."""
    x = np.frombuffer(data, "<f4")
    return bytes((x * (1.0 + eps * noise(x.view("<u4"), seed))).astype("<f4").tobytes())


def replay_disturbed(stock: str, capture: Capture, ops: Collection[str], eps: float, seed: int) -> Report:
    """Replay a capture with disturbed results of some ops; the report compares with the recorded replies."""
    report = Report(capture.name)
    for messages in capture.connections:
        connection = Connection(split_endpoint(stock), capture, report, 60.0)
        replies = iter([m for m in messages if not m.from_client])
        graphs: dict[bytes, bytes] = {}
        for m in messages:
            if not m.from_client:
                continue
            payload = capture.c2s[m.offset + REQUEST_HEADER : m.offset + m.length]
            if m.command is Command.GRAPH_COMPUTE:
                graphs[payload[: 12 if capture.dialect.graph_uid else 4]] = payload
            elif m.command is Command.GRAPH_RECOMPUTE:
                payload = graphs[payload]
            else:
                connection.exchange(m, replies)
                continue
            for node, one in one_node_graphs(capture.dialect, payload):
                connection.call(Command.GRAPH_COMPUTE, one)
                if label(node) in ops and TYPE_BY_ID[node.type].name == "F32":
                    store(connection, node, disturbed(fetch(connection, node), eps, seed))
        connection.close()
    return report


def main() -> int:
    """Print the worst rows for captures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stock")
    parser.add_argument("eps", type=float)
    parser.add_argument("ops")
    parser.add_argument("capture", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    ops = set(options.ops.split(","))
    for path in options.capture:
        capture = load(path)
        worst = [
            replay_disturbed(options.stock, capture, ops, options.eps, seed).worst for seed in range(options.seeds)
        ]
        print(f"{capture.name:24s} worst rows {' '.join(f'{w:.1e}' for w in sorted(worst))}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
