"""``ggml-rpc run`` as a process: signals, closed pipes and terminals."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ggml_rpc.peers.process import ServerProcess, own_server_command
from tests.llm.models import MODELS, cached
from tests.llm.remote import drained, servers

from .running import MAIN, SECONDS, SMALL, one_line, started

PROMPT = "The quick brown fox"
ENDLESS = ["-n", "-1", "-c", "65536", "-ub", "32", "-t", "1", "--temp", "0", "--ignore-eos"]


@pytest.fixture(scope="module")
def path() -> Path:
    return cached(MODELS["llama-bpe"], "F32")


def ended(process: subprocess.Popen[str], number: int) -> str:
    """Return standard error of a process that a signal ended."""
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_an_answer_frees_the_servers(number: int, path: Path) -> None:
    with servers(2) as pair:
        rpc = ",".join(server.endpoint for server in pair)
        words = ["run", "-m", path, "-p", PROMPT, "--rpc", rpc, "-ts", "1,1", "--no-display-prompt", *ENDLESS]
        with started(words) as process:
            assert process.stdout is not None
            assert process.stdout.read(8)
            assert all(server.n_connections == 1 for server in pair)
            process.send_signal(number)
            ended(process, number)
        assert all(drained(server) for server in pair)


def test_a_signal_while_a_server_hangs(path: Path) -> None:
    with ServerProcess(own_server_command(), ["-t", "1"]) as server:
        words = ["run", "-m", path, "-p", PROMPT, "--rpc", server.endpoint, "--json", *ENDLESS]
        with started(words) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if '"token"' in line:
                    break
            os.kill(server.pid, signal.SIGSTOP)
            try:
                process.send_signal(signal.SIGINT)
                ended(process, signal.SIGINT)
            finally:
                os.kill(server.pid, signal.SIGCONT)


def test_a_signal_while_loading(path: Path) -> None:
    with servers(1) as (server,):
        words = ["run", "-m", path, "-p", PROMPT, "--rpc", server.endpoint, "--json", *ENDLESS]
        with started(words) as process:
            assert process.stdout is not None
            assert '"load"' in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            ended(process, signal.SIGINT)
        assert drained(server)


def test_a_signal_while_connecting(path: Path) -> None:
    """A server that takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rpc = f"127.0.0.1:{silent.getsockname()[1]}"
        with started(["run", "-m", path, "-p", PROMPT, "--rpc", rpc]) as process:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(1)  # HELLO
                process.send_signal(signal.SIGINT)
                ended(process, signal.SIGINT)


def test_the_reader_has_had_enough(path: Path) -> None:
    with servers(1) as (server,):
        words = ["run", "-m", path, "-p", PROMPT, "--rpc", server.endpoint, *ENDLESS]
        with started(words) as process:
            assert process.stdout is not None
            assert process.stdout.read(8)
            process.stdout.close()
            assert process.stderr is not None
            err = process.stderr.read()
            assert process.wait(SECONDS) == 128 + signal.SIGPIPE
        assert "Traceback" not in err
        assert "Exception ignored" not in err
        assert drained(server)


# ---- Terminals -------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal with a command in it."""

    def __init__(self, words: list[str | Path], **variables: str) -> None:
        self._fd, inner = pty.openpty()
        self.process = subprocess.Popen(
            [*MAIN, *map(str, words)],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **variables},
        )
        os.close(inner)
        self.text = ""

    def until(self, what: str) -> str:
        """Return what is shown up to a text, and forget it."""
        limit = time.monotonic() + SECONDS
        while what not in self.text:
            assert time.monotonic() < limit, self.text
            assert self._more(), self.text
        shown, _, self.text = self.text.partition(what)
        return shown + what

    def _more(self) -> bool:
        """Read what is there; False at the end."""
        if not select.select([self._fd], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._fd, 4096)
        except OSError:  # the other end is closed
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def type(self, text: str) -> None:
        """Type keys."""
        os.write(self._fd, text.encode())

    def end(self) -> int:
        """Return the exit status."""
        while self._more():
            pass
        return self.process.wait(SECONDS)

    def close(self) -> None:
        """End the command."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SECONDS)
        os.close(self._fd)


@contextmanager
def terminal(*words: str | Path, **variables: str) -> Iterator[Terminal]:
    """Run a command in a terminal."""
    it = Terminal(["run", *words], **variables)
    try:
        yield it
    finally:
        it.close()


def test_bars_and_text_on_a_terminal(path: Path) -> None:
    with terminal("-m", path, "-p", PROMPT, "-n", "4", *SMALL) as it:
        assert it.end() == 0
        assert "\x1b[" in it.text
        assert PROMPT in it.text
    with terminal("-m", path, "-p", PROMPT, "-n", "4", *SMALL, TERM="dumb") as it:
        assert it.end() == 0
        assert "\x1b[" not in it.text


def test_conversation_on_a_terminal(path: Path) -> None:
    with terminal("-m", path, "-cnv", *ENDLESS, NO_COLOR="1") as it:
        assert "/exit" in it.until("stops an answer.")
        it.until("> ")
        it.type("/nothing\\\r")
        it.until(". ")
        it.type("else\r")
        it.until("else\r\n")
        # An endless answer, until it is stopped.
        assert it.until("a")
        it.process.send_signal(signal.SIGINT)
        it.until(" tokens/s]")
        it.until("> ")
        it.type("/help\r")
        it.until("/regen ")
        it.until("> ")
        it.type("\x04")
        assert it.end() == 0


def test_an_interrupt_at_the_prompt_ends(path: Path) -> None:
    with servers(1) as (server,), terminal("-m", path, "-cnv", "--rpc", server.endpoint, *SMALL) as it:
        it.until("> ")
        # Python's own wait for a line can miss a signal that comes just before it.
        while it.process.poll() is None:
            it.process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert it.process.returncode == 130
        assert drained(server)


def test_a_model_without_a_template_wants_a_prompt(path: Path) -> None:
    with terminal("-m", path, *SMALL) as it:
        assert it.end() == 1
        assert re.search(r"ggml-rpc run: \S+ has no chat template: give it a text", it.text)
        assert one_line(it.text.replace("\r", ""), "ggml-rpc run")
