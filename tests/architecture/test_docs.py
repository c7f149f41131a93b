"""The documents name what exists, and all of it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

import ggml_rpc
from ggml_rpc.cli import bench, devices, main, perplexity, run, server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))


PARSERS = [module.build_parser() for module in (server, run, bench, perplexity, devices)]


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("parser", PARSERS, ids=lambda p: p.prog)
def test_readme_lists_every_flag(parser: argparse.ArgumentParser) -> None:
    readme = text("README.md")
    assert not {
        flag for flag in flags_of(parser) if not re.search(rf"`[^`]*(?<![\w-]){re.escape(flag)}(?![\w-])", readme)
    }


@pytest.mark.parametrize(
    ("section", "parser"), [("The server", server.build_parser()), ("The client", run.build_parser())]
)
def test_readme_tables_list_no_flag_that_is_gone(section: str, parser: argparse.ArgumentParser) -> None:
    lines = text("README.md").split(f"## {section}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1] for line in lines if line.startswith("| `-")]
    listed = {flag for cell in cells for flag in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", cell)}
    assert listed == flags_of(parser)


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
