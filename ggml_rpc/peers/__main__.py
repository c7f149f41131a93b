"""Fetch stock peers and the model into the cache: ``python -m ggml_rpc.peers prepare [8.0|7.0|model|all ...]``.

``python -m ggml_rpc.peers build [PROTOCOL ...]`` builds the client libraries of older protocols from source.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from .cache import PeerError
from .model import prepare_model
from .source import SOURCES, find_source_peer, prepare_source_peer
from .stock import BUILDS, prepare_peer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ggml_rpc.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="fetch into the cache what is not there yet")
    prepare.add_argument("what", nargs="*", default="all", choices=[*BUILDS, "model", "all"])
    build = commands.add_parser("build", help="build what has no wheel, some minutes a protocol")
    build.add_argument("protocol", nargs="*", default=[], help=f"of {', '.join(SOURCES)}; all without any")
    build.add_argument("-j", "--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args(argv)
    if args.command == "build":
        return build_all(args.protocol or list(SOURCES), args.jobs)
    wanted = args.what
    for what in [*BUILDS, "model"] if "all" in wanted else wanted:
        try:
            if what == "model":
                print(f"model: {prepare_model()}", flush=True)
            else:
                peer = prepare_peer(what)
                print(f"stock peer {what}: llama-cpp-py-sync {peer.version} in {peer.library_dir}", flush=True)
        except PeerError as error:
            print(f"{what}: {error}", file=sys.stderr)
            return 1
    return 0


def build_all(protocols: Sequence[str], jobs: int) -> int:
    """Build the libraries of protocols, one after another, and return an exit status."""
    for protocol in protocols:
        if protocol not in SOURCES:
            print(f"{protocol}: no source package; there are {', '.join(SOURCES)}", file=sys.stderr)
            return 2
        source = SOURCES[protocol]
        start = time.monotonic()
        if find_source_peer(protocol) is None:
            print(f"source peer {protocol}: building {source.stem} ...", flush=True)
        try:
            peer = prepare_source_peer(protocol, jobs)
        except PeerError as error:
            print(f"{protocol}: {error}", file=sys.stderr)
            return 1
        print(f"source peer {protocol}: {source.stem} in {peer.folder}, {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
