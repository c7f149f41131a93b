"""Say what is measured against what: our server, a stock one, and the client that drives both."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ggml_rpc.devices.cpu import levels
from ggml_rpc.peers import PeerError, prepare_peer
from ggml_rpc.peers.process import ServerProcess, own_server_command, terminable
from ggml_rpc.peers.source import SourcePeer, find_source_peer

from . import native
from .figures import OURS, STOCK

CHOICES = ("auto", "native", "wheel", "ik")
ROOT = Path(__file__).resolve().parent.parent
IK_SERVER = ROOT / "tests" / "interop" / "server.cpp"
IK_CLIENT = Path(__file__).with_name("ik_client.cpp")


@dataclass(frozen=True)
class Opponent:
    """Hold a stock server and the client of the same build.

    Attributes
    ----------
    name : str
        One of `CHOICES` but ``auto``.
    protocol : str
        What both speak, and ours with them.
    description : str
        Which build it is.
    server : list of str
        The server's argv prefix.
    client : callable
        Makes the client's argv from model, endpoint, context, batch and flash attention.
    """

    name: str
    protocol: str
    description: str
    server: list[str]
    client: Callable[[Path, str, int, int, str], list[str]]


@dataclass
class Pair:
    """Hold our server and the opponent's, running.

    Attributes
    ----------
    opponent : Opponent
        The other.
    level : str
        Instruction-set level of our server.
    servers : dict
        Processes by label.
    """

    opponent: Opponent
    level: str
    servers: dict[str, ServerProcess] = field(default_factory=dict)

    def clients(self, model: Path, n_ctx: int, n_batch: int, flash: str) -> dict[str, list[str]]:
        """Return the argv of a client of each server."""
        return {
            label: self.opponent.client(model, server.endpoint, n_ctx, n_batch, flash)
            for label, server in self.servers.items()
        }

    def commands(self) -> dict[str, str]:
        """Return how both servers were started, for the record, without the way to the interpreter."""
        lines = {label: plain(server.command) for label, server in self.servers.items()}
        return {label: re.sub(r"^env .* python3 ", "python3 ", line) for label, line in lines.items()}


def plain(command: Sequence[str]) -> str:
    """Return a command line without this machine's folders."""
    line = shlex.join(command)
    for folder, name in ((sys.executable, "python3"), (str(ROOT), "."), (str(Path.home()), "~")):
        line = line.replace(folder, name)
    return line


def best_level() -> str:
    """Return the level that our server takes by itself: the environment's, else the machine's best."""
    return os.environ.get("GGML_RPC_ISA") or levels()[0]


def _stock(name: str, protocol: str, libraries: Path | None) -> Opponent:
    peer = prepare_peer(protocol)

    def client(model: Path, endpoint: str, n_ctx: int, n_batch: int, flash: str) -> list[str]:
        sizes = ["--n-ctx", str(n_ctx), "--n-batch", str(n_batch), "--flash", flash]
        return peer.driver_command(["timing", "--model", str(model), "--rpc", endpoint, *sizes])

    if libraries is not None:
        description = f"llama.cpp of llama-cpp-python {native.SOURCE.version}, native build"
        server = peer.driver_command(["serve", "--libraries", str(libraries)])
    else:
        description = f"llama-cpp-py-sync {peer.version}, AVX2 build"
        server = peer.driver_command(["serve"])
    return Opponent(name, protocol, description, server, client)


def _ik(folder: Path, libraries: Path | None) -> Opponent:
    """Compile server and client of ik_llama.cpp into a folder that stays for the run."""
    source_peer = find_source_peer(native.IK_PROTOCOL)
    if source_peer is None:
        raise PeerError(f"ik_llama.cpp is not built: make interop PROTOCOLS={native.IK_PROTOCOL}")
    (folder / "include").symlink_to(source_peer.folder / "include")
    (folder / "lib").symlink_to(libraries or source_peer.folder / "lib")
    SourcePeer(native.IK_PROTOCOL, source_peer.source, folder).compile(IK_SERVER, folder / "server")
    source_peer.compile(IK_CLIENT, folder / "client")

    def client(model: Path, endpoint: str, n_ctx: int, n_batch: int, flash: str) -> list[str]:
        # Its flash attention is on unless it is switched off.
        words = [str(n_ctx), str(n_batch), "off" if flash == "off" else "on"]
        return [str(folder / "client"), str(model), endpoint, *words]

    build = "native build" if libraries is not None else "AVX2 build"
    description = f"ik_llama.cpp of ik-llama-cpp-python {source_peer.source.version}, {build}"
    return Opponent("ik", native.IK_PROTOCOL, description, [str(folder / "server")], client)


def _llama(choice: str, level: str) -> Opponent:
    libraries = native.find_native()
    if choice == "native" and libraries is None:
        raise PeerError("no native stock server here: build it with `python -m bench.native`")
    if libraries is not None and (choice == "native" or (choice == "auto" and level == levels()[0])):
        return _stock("native", native.PROTOCOL, libraries)
    return _stock("wheel", "8.0", None)


def stock_server(choice: str) -> tuple[str, list[str], str]:
    """Return protocol, argv prefix and description of a stock server: ``native``, ``wheel`` or ``auto``."""
    found = _llama(choice, best_level())
    return found.protocol, found.server, found.description


@contextmanager
def opponent(choice: str, level: str) -> Iterator[Opponent]:
    """Provide an opponent.

    Parameters
    ----------
    choice : str
        ``native``, ``wheel`` (an AVX2 build), ``ik``, or ``auto``: native where it is built and our level is the
        machine's best, else the wheel. ``ik`` is native under the same condition.
    level : str
        Instruction-set level of our server.

    Raises
    ------
    PeerError
        If it is not here.
    """
    if choice == "ik":
        best = level == levels()[0]
        libraries = native.find_native("ik") if best else None
        if best and libraries is None:
            print("bench: no native ik_llama.cpp here, the AVX2 build takes its place: python -m bench.native ik")
        with tempfile.TemporaryDirectory(prefix="bench-ik-") as folder:
            yield _ik(Path(folder), libraries)
        return
    yield _llama(choice, level)


@contextmanager
def serving(args: argparse.Namespace, threads: int) -> Iterator[Pair]:
    """Run our server and the opponent's on loopback until the block ends.

    Parameters
    ----------
    args : argparse.Namespace
        Options of `add_arguments`.
    threads : int
        Of each server.
    """
    level = args.isa or best_level()
    if level not in levels():
        raise PeerError(f"this machine has no level {level}; it has {', '.join(levels())}")
    environment: Mapping[str, str] = {"GGML_RPC_ISA": level} if args.isa else {}
    with opponent(args.opponent, level) as other, terminable(), ExitStack() as stack:
        own = shlex.split(args.own_command) or [*own_server_command(), "--proto", other.protocol]
        pair = Pair(other, level)
        options = ["-t", str(threads)]
        pair.servers[OURS] = stack.enter_context(ServerProcess(own, options, environment=environment))
        pair.servers[STOCK] = stack.enter_context(ServerProcess(other.server, options))
        yield pair


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say what is measured against what."""
    parser.add_argument("--opponent", choices=CHOICES, default="auto", help="default: native if built, else the wheel")
    parser.add_argument("--isa", metavar="LEVEL", help=f"level of our server, of {', '.join(levels())}; default: best")
    parser.add_argument("--own-command", default="", help="argv prefix of the server under test, in place of ours")
    parser.add_argument("--flash", choices=("auto", "on", "off"), default="auto")
