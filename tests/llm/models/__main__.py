"""Write random models into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import KINDS, MODELS, write


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="tests.llm.models", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; default: all")
    parser.add_argument("--kind", action="append", choices=KINDS, help="may be repeated; default: F32")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.model or MODELS:
        for kind in args.kind or ["F32"]:
            path = args.folder / f"{name}-{kind}.gguf"
            write(path, MODELS[name], kind)
            print(path)


if __name__ == "__main__":
    main()
