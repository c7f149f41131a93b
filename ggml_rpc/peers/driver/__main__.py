"""Run a stock llama.cpp as RPC client or server; run this folder with the stock peer's Python."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import serve


def main() -> int:
    """Run the command line and return its exit status."""
    # Libraries print to standard output as they like: it carries JSON lines alone, the rest goes to standard error.
    out = os.dup(1)
    os.dup2(2, 1)

    def emit(event: str, **fields: Any) -> None:
        os.write(out, (json.dumps({"event": event, **fields}) + "\n").encode())

    parser = argparse.ArgumentParser(prog="driver", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve.add_arguments(commands.add_parser("serve", help="run the stock server"))
    if "serve" in sys.argv[1:2]:  # a native server needs no client package
        return int(serve.run(parser.parse_args(), out))

    import commands as client  # noqa: PLC0415
    import encoding  # noqa: PLC0415
    from llama import Log  # noqa: PLC0415

    client.add_commands(commands)
    encode = commands.add_parser("encode", help=(encoding.run.__doc__ or "").splitlines()[0])
    encode.set_defaults(action=encoding.run)
    encoding.add_arguments(encode)
    args = parser.parse_args()
    log = Log()
    try:
        args.action(args, emit, log)
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write("".join(log.lines[-20:]))
        print(f"driver: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
