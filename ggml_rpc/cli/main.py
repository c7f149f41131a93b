"""The command ``ggml-rpc``: one module of this package a subcommand, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from ggml_rpc import __version__

from .arguments import Parser

# Subcommand -> its line in the help. The module `ggml_rpc.cli.<subcommand>` has a `main(argv) -> int`.
COMMANDS = {
    "run": "let a language model write text or talk, on this machine and on servers",
    "bench": "measure how fast a model runs, and the way to servers",
    "perplexity": "measure how well a model predicts a text",
    "devices": "list the compute devices of this machine or of servers",
    "demo": "split a real model over two local servers and let a stock client write text",
}


def build_parser() -> Parser:
    """Return the parser of what stands before the subcommand's own arguments."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = Parser(
        "ggml-rpc",
        "Language models on this machine and on RPC servers. The server is the command ggml-rpc-server.",
        f"commands:\n{lines}\n\n`ggml-rpc COMMAND --help` shows a command's own options.",
        usage="%(prog)s [-h] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"ggml-rpc {__version__}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    # What follows the first word that is no option belongs to the subcommand.
    own = next((i + 1 for i, word in enumerate(words) if not word.startswith("-")), len(words))
    parser = build_parser()
    command = parser.parse_args(words[:own]).command
    if command is None:
        parser.error(f"there is no command: {', '.join(COMMANDS)}")
    try:
        status: int = importlib.import_module(f"ggml_rpc.cli.{command}").main(words[own:])
    except KeyboardInterrupt:
        # Before the command could say how it ends.
        status = 128 + signal.SIGINT
    if status > 128 and argv is None:
        # All is closed. A thread that still waits for a host to answer would keep the process for seconds.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
