"""Fetch stock peers and the model into the cache: ``python -m ggml_rpc.peers prepare [8.0|7.0|model|all ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .cache import PeerError
from .model import prepare_model
from .stock import BUILDS, prepare_peer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m ggml_rpc.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="fetch into the cache what is not there yet")
    prepare.add_argument("what", nargs="*", default="all", choices=[*BUILDS, "model", "all"])
    wanted = parser.parse_args(argv).what
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


if __name__ == "__main__":
    sys.exit(main())
