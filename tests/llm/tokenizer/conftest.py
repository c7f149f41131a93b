"""Vocabularies of llama.cpp's source package, and what a stock build says about them.

The package carries vocabularies of many models with test cases and their expected ids. It is fetched by name from PyPI
into the cache folder once; none of it is kept here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.llm.gguf_file import GgufFile
from ggml_rpc.llm.tokenizer import Tokenizer
from ggml_rpc.peers import Peer, PeerError, prepare_model, prepare_peer
from ggml_rpc.peers.cache import cache_dir, fresh, locked
from ggml_rpc.peers.source import Source, fetch_source

SOURCE = Source("llama-cpp-python", "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
CORPUS = (Path(__file__).parent / "corpus.txt").read_bytes().decode()
FOLDER = Path(__file__).parent
DRIVER = Path(__file__).parents[3] / "ggml_rpc" / "peers" / "driver"

Metadata = Mapping[str, Any]


def need(what: str, prepare: Callable[[], Any]) -> Any:
    """Return what `prepare` returns; skip, or fail where peers are required, if it cannot be had here."""
    try:
        return prepare()
    except PeerError as error:
        if os.environ.get("GGML_RPC_REQUIRE_PEERS") == "1":
            pytest.fail(f"{what}: {error}", pytrace=False)
        pytest.skip(f"{what}: {error}")


def prepare_vocabularies() -> Path:
    """Return the folder ``models`` of llama.cpp's source, unpacked into the cache first if it is not there."""
    target = cache_dir() / "vocabularies" / SOURCE.stem
    with locked():
        if not target.is_dir():
            with tempfile.TemporaryDirectory() as folder, fresh(target) as work:
                shutil.copytree(fetch_source(SOURCE, Path(folder), "models"), work, dirs_exist_ok=True)
    return target


@pytest.fixture(scope="session")
def vocabularies() -> Path:
    """Return the folder of the vocabularies."""
    folder: Path = need("vocabularies", prepare_vocabularies)
    return folder


@pytest.fixture(scope="session")
def vocabulary_file(vocabularies: Path) -> Callable[[str], Path]:
    """Return a function that gives the file of a vocabulary; ``gemma-3`` is the model's."""

    def find(name: str) -> Path:
        if name == "gemma-3":
            path: Path = need("model", prepare_model)
            return path
        return vocabularies / f"ggml-vocab-{name}.gguf"

    return find


@cache
def read_metadata(path: Path) -> Metadata:
    """Return the metadata of a GGUF file."""
    with GgufFile.open(path) as file:
        return dict(file.metadata)


@pytest.fixture(scope="session")
def tokenizer(vocabulary_file: Callable[[str], Path]) -> Callable[[str], Tokenizer]:
    """Return a function that gives the tokenizer of a vocabulary."""
    return cache(lambda name: Tokenizer.from_metadata(read_metadata(vocabulary_file(name))))


@pytest.fixture(scope="session")
def ask_stock() -> Callable[[Sequence[Mapping[str, Any]]], list[dict[str, Any]]]:
    """Return a function that has a stock build answer jobs, as ``stock.py`` describes them."""
    peer: Peer = need("stock peer", prepare_peer)

    def ask(jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*peer.python_command(), str(FOLDER / "stock.py"), str(DRIVER)],
            check=False,
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask
