"""Run programs against the package that this process imports: a build in place or an installed wheel."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ggml_rpc

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """Return a function that runs a command with the package importable; keywords are variables to set."""

    def call(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(ggml_rpc.__file__).parents[1]), **variables}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)

    return call


@pytest.fixture
def small_graph() -> str:
    """Return the path of the program that computes at every level."""
    return str(Path(__file__).with_name("small_graph.py"))
