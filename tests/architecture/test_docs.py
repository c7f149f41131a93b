"""The documents name what exists, and all of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import ggml_rpc
from ggml_rpc.cli import devices, main, server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("parser", [server.build_parser(), devices.build_parser()], ids=lambda p: p.prog)
def test_readme_lists_every_flag(parser: argparse.ArgumentParser) -> None:
    readme = text("README.md")
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert not {flag for flag in flags if not re.search(rf"`[^`]*(?<![\w-]){re.escape(flag)}(?![\w-])", readme)}


def test_readme_lists_no_flag_that_is_gone() -> None:
    rows = [line for line in text("README.md").splitlines() if line.startswith("| `-")]
    assert rows
    known = {flag for action in server.build_parser()._actions for flag in action.option_strings}
    listed = {flag for row in rows for flag in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", row.split("|")[1])}
    assert listed == known


def test_readme_lists_every_variable_and_command() -> None:
    readme = text("README.md")
    for name in set(re.findall(r"\b(?:GGML_RPC|LLAMA|XDG|CUDA)_[A-Z_]+\b", server.EPILOG)):
        assert f"`{name}" in readme, name
    for command in main.COMMANDS:
        assert f"`ggml-rpc {command}" in readme, command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_exist(name: str) -> None:
    used = set(re.findall(r"`make ([a-z]+)", text(name))) | set(
        re.findall(r"^\s*\$? ?make ([a-z]+)", text(name), re.MULTILINE)
    )
    assert used <= targets()
    if name == "README.md":
        assert {"demo", "test"} <= used


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_exist(name: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(name)):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:csrc|ggml_rpc|tests|tools|bench)/[\w./-]*)`", text(name)):
        assert (ROOT / path).exists(), path


def test_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert "Unreleased" in headings or ggml_rpc.__version__ in headings
