"""What surrounds the stock peers works without any of them."""

from __future__ import annotations

import sys

import pytest

from ggml_rpc.cli import demo
from ggml_rpc.peers import PeerError, cache_dir, find_peer, glibc, stock
from ggml_rpc.peers.cache import fresh
from ggml_rpc.peers.process import ServerError, ServerProcess

DEB822 = """
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://deb.vendor.example/node_20.x
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://other.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """
# deb http://old.example/debian buster main
deb [arch=amd64 signed-by=/key.gpg] https://mirror.example/debian/ bookworm main contrib
deb-src https://source.example/debian bookworm main
deb http://security.example/debian-security bookworm-security main
"""


def test_sources_keep_the_mirror_and_leave_others_out():
    new = glibc.derive_sources(DEB822, deb822=True)
    assert new == f"deb [signed-by={glibc.KEYRING}] http://mirror.example/debian trixie main\n"
    old = glibc.derive_sources(ONE_LINE, deb822=False)
    assert old == f"deb [signed-by={glibc.KEYRING}] https://mirror.example/debian/ trixie main\n"
    assert glibc.derive_sources("deb http://archive.ubuntu.example/ubuntu jammy main\n", deb822=False) == ""


def test_other_machines_are_told_in_one_line(monkeypatch):
    monkeypatch.setattr(glibc.platform, "machine", lambda: "riscv64")
    with pytest.raises(PeerError, match=r"^the stock llama\.cpp wheels are built for x86-64, .*riscv64$"):
        find_peer("8.0")
    with pytest.raises(PeerError, match=r"no stock peer speaks 1\.0"):
        find_peer("1.0")


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GGML_RPC_CACHE", str(tmp_path / "a"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("GGML_RPC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "b" / "ggml-rpc"


def test_folder_appears_whole_or_not_at_all(tmp_path):
    def fail():
        with fresh(tmp_path / "peer") as work:
            (work / "half").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with fresh(tmp_path / "peer") as work:
        (work / "whole").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["peer"]
    assert (tmp_path / "peer" / "whole").exists()


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 7], "0-2, 7"), ([5, 4], "4-5")])
def test_layer_ranges(numbers, text):
    assert demo.ranges(numbers) == text


def test_placement_names_devices_and_output():
    lines = demo.placement({"RPC0": [0, 1, 2], "RPC1": [3, 4]}, {"RPC0": "a:1"})
    assert lines == ["  RPC0 on a:1: layers 0-2", "  RPC1 on this machine: layers 3 and output"]


def test_demo_without_a_peer_says_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GGML_RPC_CACHE", str(tmp_path))
    monkeypatch.setattr(stock, "_installed", lambda build: None)
    assert demo.main([]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("ggml-rpc demo: ")
    assert output.err.count("\n") == 1


def test_server_that_does_not_start_is_reported():
    with pytest.raises(ServerError, match="broken on purpose"):
        ServerProcess([sys.executable, "-c", "raise SystemExit('broken on purpose')"])
