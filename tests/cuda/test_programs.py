"""Compiled kernels on disk: found again, made anew when anything differs or is damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ggml_rpc.devices.cuda.programs import CACHE_VARIABLE, Program, ProgramCache, cache_folder, sources_of

NAMES = ["f<1>", "f<2>", "f<3>"]


class FakeCompiler:
    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def compile(self, file: str, expressions: Sequence[str]) -> Program:
        self.asked.append((file, list(expressions)))
        return Program({name: f"_Z{name}" for name in expressions}, b"code of " + ",".join(expressions).encode())


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    kernels = tmp_path / "csrc" / "cuda" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "f.cu").write_text('#include "cuda/kernels/f.h"\n#include "emulator.h"\nkernel\n')
    (kernels / "f.h").write_text('#include "cuda/args.h"\n')
    (tmp_path / "csrc" / "cuda" / "args.h").write_text("struct\n")
    return tmp_path / "csrc"


def cache(
    sources: Path, identity: str = "sm_90 13.5", folder: str | None = "cache"
) -> tuple[ProgramCache, FakeCompiler]:
    compiler = FakeCompiler()
    place = None if folder is None else sources.parent / folder
    return ProgramCache(compiler.compile, identity, place, sources), compiler


def files(sources: Path) -> list[Path]:
    return sorted((sources.parent / "cache").rglob("*.program"))


def test_kernels_of_a_file_are_compiled_together_and_once(sources: Path) -> None:
    programs, compiler = cache(sources)
    (first,) = programs.programs("f", NAMES[:2])
    assert compiler.asked == [("f", NAMES[:2])]
    # Another process, in which one more is wanted.
    programs, compiler = cache(sources)
    assert programs.missing("f", NAMES) == NAMES[2:]
    both = programs.programs("f", NAMES)
    assert compiler.asked == [("f", NAMES[2:])]
    assert both[0] == first
    assert {name for program in both for name in program.kernels} == set(NAMES)
    assert programs.programs("f", NAMES[1:2]) == [first]
    assert [path.suffix for path in (sources.parent / "cache").rglob("*") if path.is_file()] == [".program"] * 2


@pytest.mark.parametrize("changed", ["cuda/kernels/f.cu", "cuda/kernels/f.h", "cuda/args.h", "identity"])
def test_whatever_the_result_depends_on_is_in_its_name(sources: Path, changed: str) -> None:
    cache(sources)[0].programs("f", NAMES)
    if changed != "identity":
        (sources / changed).write_text((sources / changed).read_text() + "// more\n")
    programs, compiler = cache(sources, "sm_89 13.5" if changed == "identity" else "sm_90 13.5")
    programs.programs("f", NAMES)
    assert len(compiler.asked) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_made_anew(sources: Path, damage: str) -> None:
    programs, _ = cache(sources)
    (program,) = programs.programs("f", NAMES)
    (path,) = files(sources)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[-3] ^= 1
    path.write_bytes({"cut": data[:-1], "flip": bytes(flipped), "empty": b"", "other": b"x" * 100}[damage])
    programs, compiler = cache(sources)
    assert programs.programs("f", NAMES) == [program]
    assert len(compiler.asked) == 1
    assert files(sources)[0].read_bytes() == data


def test_without_a_place_to_write_kernels_are_compiled_each_time(sources: Path) -> None:
    for folder in (None, "csrc/cuda/args.h"):  # a file stands where the folder should be
        programs, compiler = cache(sources, folder=folder)
        for _ in range(2):
            programs.programs("f", NAMES)
        assert len(compiler.asked) == 2


def test_the_folder_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() is None
    monkeypatch.setenv("HOME", "/h")
    assert cache_folder() == Path("/h/.cache/ggml-rpc/cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/ggml-rpc/cuda")
    monkeypatch.setenv(CACHE_VARIABLE, "/k")
    assert cache_folder() == Path("/k")
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert cache_folder() is None


def test_sources_are_a_file_and_what_it_includes(sources: Path) -> None:
    assert set(sources_of("f", sources)) == {"cuda/kernels/f.cu", "cuda/kernels/f.h", "cuda/args.h"}
    with pytest.raises(FileNotFoundError):
        sources_of("g", sources)
