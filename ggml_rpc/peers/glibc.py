"""Give the stock wheels a C library that is new enough, without installing one.

The wheels are linked against glibc 2.38. On an older Debian the four library packages of Debian 13 are downloaded by
apt, checked against the distribution's own keyring, and unpacked into the cache folder; programs then start through
the loader that lies there. Nothing on the machine changes.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from .cache import PeerError, fresh, run_tool

REQUIRED = (2, 38)
SUITE = "trixie"  # Debian 13, glibc 2.41
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = ("libc6", "libstdc++6", "libgcc-s1", "libgomp1")
TRIPLET = "x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"


@dataclass(frozen=True)
class Runtime:
    """Hold the loader and the library folders of an unpacked C library.

    Attributes
    ----------
    loader : pathlib.Path
        The dynamic loader to start programs with.
    library_dirs : tuple of pathlib.Path
        Folders searched before the system's own, first one first.
    """

    loader: Path
    library_dirs: tuple[Path, ...]

    def command(self, python: str, *, first: Path | None = None) -> list[str]:
        """Return the argv prefix that starts `python` under this loader.

        Parameters
        ----------
        python : str
            Path of the interpreter.
        first : pathlib.Path, optional
            A folder searched before all others, for a wheel's own libraries.
        """
        # An interpreter that is linked with a shared libpython must meet its own, not the system's of the same name.
        own = sysconfig.get_config_var("LIBDIR") if sysconfig.get_config_var("Py_ENABLE_SHARED") else None
        folders = [
            *([first] if first else []),
            *self.library_dirs,
            *([Path(own)] if own else []),
            Path("/usr/lib") / TRIPLET,
            Path("/lib") / TRIPLET,
        ]
        path = ":".join(str(folder) for folder in folders)
        return [str(self.loader), "--library-path", path, python]


def system_glibc() -> tuple[int, int] | None:
    """Return the version of the running C library, or None if it is not glibc."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION")
    except ValueError:
        return None
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", text or "")
    return (int(found[1]), int(found[2])) if found else None


def needs_runtime() -> bool:
    """Tell whether stock wheels need the unpacked C library on this machine.

    Raises
    ------
    PeerError
        If no stock wheel can run here at all.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise PeerError(f"the stock llama.cpp wheels are built for x86-64, this machine is {platform.machine()}")
    version = system_glibc()
    if version is None:
        raise PeerError("the stock llama.cpp wheels need glibc 2.38 or later, this system has another C library")
    return version < REQUIRED


def runtime_dir(root: Path) -> Path:
    """Return where the unpacked C library lies below the cache folder `root`."""
    return root / f"debian-{SUITE}-{TRIPLET}"


def find_runtime(root: Path) -> Runtime | None:
    """Return the unpacked C library of the cache folder `root`, or None if it is not there."""
    library = runtime_dir(root) / "usr" / "lib" / TRIPLET
    loader = library / LOADER
    return Runtime(loader, (library,)) if loader.exists() else None


def derive_sources(text: str, *, deb822: bool) -> str:
    """Turn the machine's Debian sources into one for Debian 13, keeping mirror and protocol.

    Parameters
    ----------
    text : str
        Contents of a file of apt's source list.
    deb822 : bool
        Whether the file is in the multi-line (``.sources``) format.

    Returns
    -------
    str
        Lines of a one-line source list; empty if the file names no Debian archive. Repositories of security updates
        and of other vendors are left out.
    """
    uris: list[str] = []
    if deb822:
        for stanza in re.split(r"\n\s*\n", text):
            fields = {}
            for line in stanza.splitlines():
                name, colon, value = line.partition(":")
                if colon and not line.startswith(("#", " ", "\t")):
                    fields[name.strip().lower()] = value.split()
            if "deb" in fields.get("types", []) and fields.get("enabled", ["yes"]) != ["no"]:
                uris += fields.get("uris", [])
    else:
        uris += re.findall(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)", text, flags=re.MULTILINE)
    archive = [uri for uri in uris if re.fullmatch(r"(https?|mirror\+\w+|file|ftp)://?\S*/debian/?", uri)]
    return "".join(f"deb [signed-by={KEYRING}] {uri} {SUITE} main\n" for uri in dict.fromkeys(archive))


def machine_sources() -> str:
    """Return a source list for Debian 13 derived from this machine's own.

    Raises
    ------
    PeerError
        If the machine is not a Debian with an archive in its sources.
    """
    etc = Path("/etc/apt")
    files = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    parts = [
        derive_sources(file.read_text(errors="replace"), deb822=file.suffix == ".sources")
        for file in files
        if file.suffix in (".list", ".sources") and file.is_file()
    ]
    lines = "".join(dict.fromkeys("".join(parts).splitlines(keepends=True)))
    if not lines or shutil.which("apt-get") is None or not KEYRING.exists():
        version = ".".join(map(str, system_glibc() or ()))
        raise PeerError(f"the stock llama.cpp wheels need glibc 2.38, this system has {version} and is no Debian")
    return lines


def prepare_runtime(root: Path) -> Runtime:
    """Return the unpacked C library, downloading it first if the cache lacks it. Call with the lock held.

    Raises
    ------
    PeerError
        If the machine is no Debian, or if apt or dpkg fails.
    """
    ready = find_runtime(root)
    if ready is not None:
        return ready
    sources = machine_sources()
    with fresh(runtime_dir(root)) as work:
        apt = work / ".apt"
        archives = apt / "archives"
        for folder in (apt / "lists" / "partial", archives / "partial", apt / "parts"):
            folder.mkdir(parents=True)
        (apt / "sources.list").write_text(sources)
        (apt / "status").touch()
        # Private state, cache and lists: the machine's package database is neither read nor written.
        settings = {
            "Dir::State": apt,
            "Dir::State::status": apt / "status",
            "Dir::State::lists": apt / "lists",
            "Dir::Cache": apt,
            "Dir::Etc::sourcelist": apt / "sources.list",
            "Dir::Etc::sourceparts": apt / "parts",
            "APT::Sandbox::User": "",  # the cache folder may be closed to apt's download user
            "Acquire::Languages": "none",
        }
        command = ["apt-get", "-q"]
        for key, value in settings.items():
            command += ["-o", f"{key}={value}"]
        run_tool([*command, "update"], "apt could not read the Debian 13 archive")
        names = [f"{name}:amd64" for name in PACKAGES]
        run_tool([*command, "download", *names], "apt could not download the Debian 13 libraries", folder=archives)
        for package in sorted(archives.glob("*.deb")):
            run_tool(["dpkg", "-x", str(package), str(work)], f"dpkg could not unpack {package.name}")
        shutil.rmtree(apt)
    unpacked = find_runtime(root)
    if unpacked is None:
        raise PeerError(f"the Debian 13 packages hold no {LOADER}")
    return unpacked
