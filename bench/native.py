"""Build native stock servers from source, the fair opponents for speed: ``python -m bench.native [llama.cpp|ik ...]``.

The builds that the tests use are for AVX2. The ggml part of a source package alone, built with ``GGML_NATIVE=ON``, is
all that a server needs, and takes some minutes instead of a quarter of an hour. The result lies in the cache folder, a
folder per processor model.

``llama.cpp`` is that of llama-cpp-python 0.3.36, whose server speaks 7.0.0, ``ik`` the ik_llama.cpp that `make interop`
takes too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggml_rpc.peers.cache import PeerError, cache_dir, fresh, locked, run_tool
from ggml_rpc.peers.source import SOURCES, Source, fetch_source

PROTOCOL = "7.0"
IK_PROTOCOL = "ik-3.5.2@2026-04-13"
SOURCE = Source("llama-cpp-python", "0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e")


@dataclass(frozen=True)
class Native:
    """Say what is built of a source package.

    Attributes
    ----------
    name : str
        First part of the folder's name.
    source : Source
        The package.
    libraries : tuple of str
        What is kept of the build.
    targets : tuple of str
        CMake's targets that make them.
    """

    name: str
    source: Source
    libraries: tuple[str, ...]
    targets: tuple[str, ...]

    def folder(self) -> Path:
        """Return where the libraries lie; the folder need not exist yet."""
        return cache_dir() / "peers" / f"{self.name}-{self.source.version}-native-{processor()}"


NATIVE = {
    "llama.cpp": Native(
        "llama.cpp",
        SOURCE,
        ("libggml-base.so", "libggml-cpu.so", "libggml.so", "libggml-rpc.so"),
        ("ggml-rpc", "ggml-cpu", "ggml"),
    ),
    "ik": Native("ik_llama.cpp", SOURCES[IK_PROTOCOL], ("libggml.so",), ("ggml",)),
}


def processor() -> str:
    """Return a short name of this processor's instruction set, since a native build runs on no other."""
    text = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, flags=re.MULTILINE)
    return hashlib.sha256(" ".join(sorted((flags[1] if flags else text).split())).encode()).hexdigest()[:12]


def find_native(name: str = "llama.cpp") -> Path | None:
    """Return the folder of the native libraries, or None if they have not been built."""
    folder = NATIVE[name].folder()
    return folder if folder.is_dir() else None


def prepare_native(name: str = "llama.cpp", jobs: int = 1) -> Path:
    """Return the folder of the native libraries, building them first if the cache lacks them.

    Parameters
    ----------
    name : str
        One of `NATIVE`.
    jobs : int
        Compiler processes at once.

    Raises
    ------
    PeerError
        If the source cannot be had or does not build.
    """
    ready = find_native(name)
    if ready is not None:
        return ready
    native = NATIVE[name]
    with tempfile.TemporaryDirectory(prefix="ggml-native-") as temporary:
        folder = Path(temporary)
        source = fetch_source(native.source, folder, "ggml")
        build = folder / "build"
        # As a subproject: built alone, ggml wants a pkg-config template that the source package leaves out.
        (folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.14)\nproject(peer C CXX ASM)\n"
            + ("set(CMAKE_CXX_STANDARD 20)\n" if native.source.is_ik else "")
            + f'add_subdirectory("{source.relative_to(folder)}" ggml)\n'
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
        run_tool(["cmake", "-S", str(folder), "-B", str(build), *defines], "cmake could not configure ggml")
        command = ["cmake", "--build", str(build), "--target", *native.targets, "-j", str(jobs)]
        # Paths relative to the temporary folder, so that a compiler cache knows them again.
        run_tool(["nice", "-n", "19", *command], "ggml does not build here", environment={"CCACHE_BASEDIR": temporary})
        with locked(), fresh(native.folder()) as work:
            for library in native.libraries:
                for file in build.rglob(f"{library}*"):
                    if not file.is_symlink() and file.is_file():
                        shutil.copy2(file, work / library)
                soname = work / f"{library}.0"  # the libraries ask for each other by soname
                if not native.source.is_ik and not soname.exists():
                    soname.symlink_to(library)
    return native.folder()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.native", description=__doc__)
    parser.add_argument("what", nargs="*", default=["llama.cpp"], metavar="WHAT", help=f"of {', '.join(NATIVE)}")
    parser.add_argument("-j", "--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args(argv)
    for name in args.what:
        if name not in NATIVE:
            parser.error(f"{name}: there are {', '.join(NATIVE)}")
    try:
        for name in args.what:
            print(prepare_native(name, args.jobs), flush=True)
    except PeerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
