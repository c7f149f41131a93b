"""Build a native stock server from source, the fair opponent for speed: ``python -m bench.native``.

The wheels that the tests use are AVX2 builds. The source package llama-cpp-python 0.3.36 vendors a llama.cpp whose RPC
server speaks 7.0.0; its ggml part alone, built with ``GGML_NATIVE=ON``, is all that a server needs, and takes some
minutes instead of a quarter of an hour. The result lies in the cache folder, a folder per processor model.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ggml_rpc.peers.cache import PeerError, cache_dir, fresh, locked, run_tool
from ggml_rpc.peers.source import Source, fetch_source

PROTOCOL = "7.0"
SOURCE = Source("llama-cpp-python", "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")
LIBRARIES = ("libggml-base.so", "libggml-cpu.so", "libggml.so", "libggml-rpc.so")


def processor() -> str:
    """Return a short name of this processor's instruction set, since a native build runs on no other."""
    text = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return hashlib.sha256(" ".join(sorted((flags[1] if flags else text).split())).encode()).hexdigest()[:12]


def library_dir() -> Path:
    """Return where the native libraries lie; the folder need not exist yet."""
    return cache_dir() / "peers" / f"llama.cpp-{SOURCE.version}-native-{processor()}"


def find_native() -> Path | None:
    """Return the folder of the native libraries, or None if they have not been built."""
    folder = library_dir()
    return folder if folder.is_dir() else None


def prepare_native(jobs: int = 1) -> Path:
    """Return the folder of the native libraries, building them first if the cache lacks them.

    Parameters
    ----------
    jobs : int
        Compiler processes at once.

    Raises
    ------
    PeerError
        If the source cannot be had or does not build.
    """
    ready = find_native()
    if ready is not None:
        return ready
    with tempfile.TemporaryDirectory(prefix="ggml-native-") as folder:
        source = fetch_source(SOURCE, Path(folder), "ggml")
        build = Path(folder) / "build"
        # As a subproject: built alone, ggml wants a pkg-config template that the source package leaves out.
        (Path(folder) / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.14)\nproject(peer C CXX ASM)\n"
            f'add_subdirectory("{source.relative_to(folder)}" ggml)\n'
        )
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_BUILD_RPATH": "$ORIGIN",
            "BUILD_SHARED_LIBS": "ON",
            "GGML_RPC": "ON",
            "GGML_NATIVE": "ON",
            "GGML_BUILD_TESTS": "OFF",
            "GGML_BUILD_EXAMPLES": "OFF",
        }
        defines = [f"-D{key}={value}" for key, value in options.items()]
        run_tool(["cmake", "-S", folder, "-B", str(build), *defines], "cmake could not configure ggml")
        command = ["cmake", "--build", str(build), "--target", "ggml-rpc", "ggml-cpu", "ggml", "-j", str(jobs)]
        run_tool(["nice", "-n", "19", *command], "ggml does not build here")
        with locked(), fresh(library_dir()) as work:
            for name in LIBRARIES:
                for file in build.rglob(f"{name}*"):
                    if not file.is_symlink() and file.is_file():
                        run_tool(["cp", str(file), str(work / name)], f"cannot copy {name}")
                soname = work / f"{name}.0"  # the libraries ask for each other by soname
                if not soname.exists():
                    soname.symlink_to(name)
    return library_dir()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.native", description=__doc__)
    parser.add_argument("-j", "--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    try:
        print(prepare_native(parser.parse_args(argv).jobs))
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
