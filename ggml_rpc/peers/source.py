"""Build the client libraries of older llama.cpp and of ik_llama.cpp from source packages of PyPI, one a protocol.

Wheels with the RPC backend exist only of the newest protocols. The source packages vendor the whole of llama.cpp; its
libraries alone, for AVX2, take five to fifteen minutes of one processor each and then lie in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .cache import PeerError, cache_dir, fresh, locked, run_tool


@dataclass(frozen=True)
class Source:
    """Name one source package.

    Attributes
    ----------
    distribution, version : str
        Package on PyPI.
    sha256 : str
        Digest of its source archive.
    vendor : str
        Folder of the C++ project inside.
    """

    distribution: str
    version: str
    sha256: str
    vendor: str = "vendor/llama.cpp"

    @property
    def is_ik(self) -> bool:
        """Tell whether this is ik_llama.cpp, whose API differs and whose backends are all in one library."""
        return self.vendor.endswith("ik_llama.cpp")

    @property
    def stem(self) -> str:
        """Return the name of the archive's top folder."""
        return f"{self.distribution.replace('-', '_')}-{self.version}"


_LLAMA = "llama-cpp-python"
SOURCES = {
    "5.0.0": Source(_LLAMA, "0.3.35", "1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12"),
    "4.0.1": Source(_LLAMA, "0.3.33", "369ba03d02caaef42c1ed07bbdc454f7436e47c7675b8b9757fa13fbac6acd92"),
    "3.6.1": Source(_LLAMA, "0.3.20", "70f01b7d915d31c617dc66610a332cb2d51cde84c8b152d09a352206323616f5"),
    "2.0.0": Source(_LLAMA, "0.3.16", "34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6"),
    "ik-3.5.2@2026-04-13": Source(
        "ik-llama-cpp-python",
        "0.1.5",
        "33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad",
        "vendor/ik_llama.cpp",
    ),
}

# ggml, whose kernels the local reference runs, with -O2; the rest builds graphs only, and compiles in half the time.
# Of llama's files those of the models are many, small and alike: ten a compiler call cost a quarter, except for the few
# that define functions of the same name.
_PROJECT = """\
cmake_minimum_required(VERSION 3.18)
project(peer C CXX ASM)
set(CMAKE_CXX_STANDARD {standard})
set(CMAKE_C_FLAGS_RELEASE "-O2 -DNDEBUG")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
add_subdirectory("{source}/ggml" ggml)
set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG")
add_subdirectory("{source}" llama)
get_target_property(folder llama SOURCE_DIR)
get_target_property(sources llama SOURCES)
set(alone ${{sources}})
list(FILTER alone EXCLUDE REGEX "models/")
list(TRANSFORM alone PREPEND "${{folder}}/")
list(FILTER sources INCLUDE REGEX "models/(gemma|delta-net)")
set_source_files_properties(${{alone}} ${{sources}} DIRECTORY "${{folder}}" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 10)
"""
_ON = ("BUILD_SHARED_LIBS", "GGML_RPC", "GGML_AVX", "GGML_AVX2", "GGML_FMA", "GGML_F16C", "GGML_BMI2")
_OFF = (
    *("GGML_NATIVE", "GGML_LLAMAFILE", "GGML_IQK_FA_ALL_QUANTS", "GGML_BUILD_TESTS", "GGML_BUILD_EXAMPLES"),
    *(f"LLAMA_BUILD_{part}" for part in ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER", "APP", "MTMD")),
    "LLAMA_CURL",
)


@dataclass(frozen=True)
class SourcePeer:
    """Hold the built libraries of one protocol.

    Attributes
    ----------
    protocol : str
        Name of the dialect.
    source : Source
        The package they come from.
    folder : pathlib.Path
        Has ``include`` and ``lib``.
    """

    protocol: str
    source: Source
    folder: Path

    def compile(self, program: Path, target: Path) -> None:
        """Compile a C++ program against the libraries.

        Raises
        ------
        PeerError
            If it does not compile.
        """
        lib = self.folder / "lib"
        names = [file.name for file in sorted(lib.glob("lib*.so"))]
        define = ["-DPEER_IK"] if self.source.is_ik else []
        command = [
            *shlex.split(os.environ.get("CXX", "g++")),
            "-std=c++17",
            "-O1",
            *define,
            f"-I{self.folder / 'include'}",
        ]
        command += [str(program), f"-L{lib}", f"-Wl,-rpath,{lib}", *(f"-l:{name}" for name in names)]
        run_tool([*command, "-o", str(target)], f"{program.name} does not compile against {self.source.stem}")


def _folder(source: Source) -> Path:
    return cache_dir() / "peers" / f"{source.distribution}-{source.version}-avx2"


def fetch_source(source: Source, target: Path, part: str = "") -> Path:
    """Download a source package and unpack its C++ project below `target`; return the project's folder.

    Parameters
    ----------
    source : Source
        The package; an archive that lies in the cache's ``dl`` folder is taken from there.
    target : pathlib.Path
        Folder to unpack into.
    part : str
        Unpack, and return, this folder of the project alone.

    Raises
    ------
    PeerError
        If pip cannot fetch it or its checksum differs.
    """
    archive = cache_dir() / "dl" / f"{source.stem}.tar.gz"
    if not archive.exists():
        # The build requirements are pip's concern even for a download: without isolation it asks for none.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        pip += ["--no-build-isolation", "-d", str(target), f"{source.distribution}=={source.version}"]
        run_tool(pip, f"pip could not fetch the source package {source.stem}")
        archive = target / archive.name
    digest = hashlib.sha256()
    with open(archive, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    if digest.hexdigest() != source.sha256:
        raise PeerError(f"{archive.name} has checksum {digest.hexdigest()}, expected {source.sha256}")
    prefix = "/".join(filter(None, (source.stem, source.vendor, part))) + "/"
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix) and ".." not in Path(member.name).parts:
                tar.extract(member, target)
    return target / prefix


def find_source_peer(protocol: str) -> SourcePeer | None:
    """Return the libraries of a protocol if they have been built, or None."""
    source = SOURCES[protocol]
    folder = _folder(source)
    return SourcePeer(protocol, source, folder) if folder.is_dir() else None


def prepare_source_peer(protocol: str, jobs: int = 1) -> SourcePeer:
    """Return the libraries of a protocol, building them first if the cache lacks them.

    Parameters
    ----------
    protocol : str
        One of `SOURCES`.
    jobs : int
        Compiler processes at once.

    Raises
    ------
    PeerError
        If the source cannot be had or does not build.
    """
    ready = find_source_peer(protocol)
    if ready is not None:
        return ready
    source = SOURCES[protocol]
    with tempfile.TemporaryDirectory(prefix=f"{source.stem}-") as name:
        work = Path(name)
        project = fetch_source(source, work)
        _build(source, project, work, jobs)
        with locked(), fresh(_folder(source)) as target:
            (target / "lib").mkdir()
            for file in (work / "build").rglob("*.so*"):
                if not file.is_dir():  # names that are links stay links: the loader asks for the soname
                    shutil.copy2(file, target / "lib", follow_symlinks=False)
            headers = [project / "include", project / "ggml" / "include"]
            (target / "include").mkdir()
            for header in (header for folder in headers for header in folder.glob("*.h")):
                shutil.copy2(header, target / "include")
    return SourcePeer(protocol, source, _folder(source))


def _build(source: Source, project: Path, work: Path, jobs: int) -> None:
    text = _PROJECT.format(source=project.relative_to(work), standard=20 if source.is_ik else 17)
    (work / "CMakeLists.txt").write_text(text)
    defines = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_BUILD_RPATH=$ORIGIN"]
    defines += [f"-D{key}=ON" for key in _ON] + [f"-D{key}=OFF" for key in _OFF]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(work), "-B", str(work / "build"), *generator, *defines]
    # Paths relative to the temporary folder, so that a compiler cache knows them again.
    environment = {"CCACHE_BASEDIR": str(work)}
    run_tool(configure, f"cmake could not configure {source.stem}", environment=environment)
    targets = ["llama", "ggml"] if source.is_ik else ["llama", "ggml", "ggml-cpu", "ggml-rpc"]
    build = ["nice", "-n", "19", "cmake", "--build", str(work / "build"), "--target", *targets, "-j", str(jobs)]
    run_tool(build, f"{source.stem} does not build here", environment=environment)
