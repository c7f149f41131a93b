"""Models by name, from a stand-in of a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from ggml_rpc.errors import ModelError, RpcError
from ggml_rpc.llm import hub as hub_module
from ggml_rpc.llm.hub import fetch
from tests.llm.hub_server import COMMIT, HubServer, serve_hub

FILES = {
    "README.md": b"# A model",
    "imatrix-Q4_K_M.gguf": b"calibration",
    "mmproj-model-Q4_K_M.gguf": b"projector",
    "model-BF16-00001-of-00002.gguf": b"first half",
    "model-BF16-00002-of-00002.gguf": b"second half",
    "model-IQ2_XS.gguf": b"small",
    "model-Q4_K_M.gguf": b"middle" * 1000,
    "model-q8_0.gguf": b"large",
    "sub/other.Q6_K.gguf": b"in a folder",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serve_hub() as server:
        server.repos["user/repo"] = dict(FILES)
        # As HF_ENDPOINT does when the library is imported.
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "*")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("user/repo", "model-Q4_K_M.gguf"),
        ("user/repo:Q8_0", "model-q8_0.gguf"),
        ("user/repo:iq2_xs", "model-IQ2_XS.gguf"),
        ("user/repo:q6_k", "sub/other.Q6_K.gguf"),
    ],
)
def test_the_file_by_its_quantisation(hub: HubServer, spec: str, name: str) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = fetch(spec, progress=lambda *args: told.append(args))
    assert path.as_posix().endswith(f"/snapshots/{COMMIT}/{name}")
    assert path.read_bytes() == FILES[name]
    assert told[-1] == (name, len(FILES[name]), len(FILES[name]))
    assert len(hub.bodies()) == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b-Q8_0.gguf", "a-F16.gguf"], "b-Q8_0.gguf"),
        (["b-F16.gguf", "a-F32.gguf", "c.txt"], "a-F32.gguf"),
        (["plain.gguf"], "plain.gguf"),
        (["Q4_K_M/x.gguf", "x-Q4_K_M.gguf"], "x-Q4_K_M.gguf"),
        (["x-Q4_K_S.gguf", "x-Q4_K_M_L.gguf"], "x-Q4_K_M_L.gguf"),
    ],
)
def test_without_a_quantisation(hub: HubServer, names: list[str], expected: str) -> None:
    hub.repos["user/repo"] = {name: name.encode() for name in names}
    assert fetch("user/repo").read_bytes() == expected.encode()


def test_all_parts_of_a_split_model(hub: HubServer) -> None:
    path = fetch("user/repo:bf16")
    assert path.name == "model-BF16-00001-of-00002.gguf"
    assert [p.read_bytes() for p in sorted(path.parent.iterdir())] == [b"first half", b"second half"]
    # Parts that are there are not fetched again.
    path.with_name("model-BF16-00002-of-00002.gguf").resolve().unlink()
    path.with_name("model-BF16-00002-of-00002.gguf").unlink()
    fetch("user/repo:bf16")
    assert len(hub.bodies()) == 3


def test_a_part_that_the_repository_lacks(hub: HubServer) -> None:
    del hub.repos["user/repo"]["model-BF16-00002-of-00002.gguf"]
    with pytest.raises(ModelError, match=r"lacks 1 of 2 parts in http.* the first is model-BF16-00002-of-00002.gguf"):
        fetch("user/repo:bf16")
    assert not hub.bodies()


def test_a_connection_that_breaks_is_taken_up_again(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library's pause before it tries again
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 512)
    hub.break_after = 2000
    told: list[int] = []
    path = fetch("user/repo", progress=lambda name, done, total: told.append(done))
    assert path.read_bytes() == FILES["model-Q4_K_M.gguf"]
    assert [line.split(" ")[2:] for line in hub.bodies()] == [[], ["bytes=1536-"]]
    assert told == sorted(told)
    assert told[-1] == 6000


def test_the_second_time_nothing_is_fetched(hub: HubServer) -> None:
    first = fetch("user/repo:Q8_0")
    told: list[Any] = []
    assert fetch("user/repo:Q8_0", progress=lambda *args: told.append(args)) == first
    assert len(hub.bodies()) == 1
    assert not told


def test_a_file_that_changed_is_fetched_again(hub: HubServer) -> None:
    fetch("user/repo:Q8_0")
    hub.repos["user/repo"]["model-q8_0.gguf"] = b"changed"
    # The same commit: the library trusts what it has of a commit.
    assert fetch("user/repo:Q8_0").read_bytes() == b"large"


@pytest.mark.parametrize("how", ["offline", "down", "status"])
def test_without_the_hub_the_cache_serves(hub: HubServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    first = fetch("user/repo:bf16")
    cut_off(hub, monkeypatch, how)
    asked = len(hub.requests)
    assert fetch("user/repo:BF16") == first
    assert fetch("user/repo") == first
    assert len(hub.requests) - asked <= 2 * (how == "status")
    words = {"offline": "HF_HUB_OFFLINE is set", "down": "cannot be reached: .+", "status": "status 503"}[how]
    with pytest.raises(ModelError, match=rf"user/repo has no Q8_0 in the cache; it has BF16 \(.*{words}"):
        fetch("user/repo:Q8_0")
    with pytest.raises(ModelError, match=rf"user/other has no GGUF model in the cache \(.*{words}"):
        fetch("user/other")
    first.with_name("model-BF16-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=rf"lacks 1 of 2 parts in the cache.*{words}"):
        fetch("user/repo:bf16")


@pytest.mark.parametrize("how", ["offline", "down", "status"])
def test_without_the_hub_and_a_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    cut_off(hub, monkeypatch, how)
    with pytest.raises(ModelError, match=r"user/repo has no GGUF model in the cache \(") as caught:
        fetch("user/repo")
    assert "\n" not in str(caught.value)


def cut_off(hub: HubServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Make the hub unusable."""
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "down":
        hub.shutdown()
        hub.server_close()
    else:
        hub.status = 503
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("repo", "write USER/REPO or USER/REPO:QUANT"),
        ("../..", "no model's name"),
        ("user/repo/file.gguf", "no model's name"),
        ("user/repo:", "no model's name"),
        ("user/repo:Q4/K", "no model's name"),
        ("user/repo\n", "no model's name"),
        ("user/none", "has no repository user/none, or it is private: check the name; .*HF_TOKEN"),
        ("user/repo:Q3_K", "user/repo has no Q3_K in http://.*; it has BF16, IQ2_XS, Q4_K_M, Q6_K, Q8_0$"),
        ("user/repo:Q4_K", "has no Q4_K in"),
        ("user/empty", "user/empty has no GGUF model in http"),
        ("user/gated", "user/gated is gated: ask for access on http://.*/user/gated, then set HF_TOKEN"),
    ],
)
def test_what_cannot_be_fetched(hub: HubServer, spec: str, words: str) -> None:
    hub.repos["user/empty"] = {"model.safetensors": b"", "mmproj-f16.gguf": b""}
    hub.repos["user/gated"] = dict(FILES)
    hub.tokens["user/gated"] = "hf_secret"
    with pytest.raises(ModelError, match=words) as caught:
        fetch(spec)
    assert "\n" not in str(caught.value).replace(repr(spec), "")


def test_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["user/gated"] = dict(FILES)
    hub.tokens["user/gated"] = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert fetch("user/gated:Q8_0").read_bytes() == b"large"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ((401, ""), "has no repository user/repo, or it is private"),
        ((403, ""), "does not let this token read user/repo"),
        ((403, "GatedRepo"), "is gated"),
        ((404, "RepoNotFound"), "has no repository"),
        ((404, ""), "has no repository"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_refusals(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str], words: str, late: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        hub.status, hub.error_code = refusal

    if late:  # the list is given, the file is not
        monkeypatch.setattr(hub_module, "_bar", refuse)
    else:
        refuse()
    with pytest.raises(ModelError, match=words):
        fetch("user/repo:Q8_0")


@pytest.mark.parametrize(
    "answer", [b"<html>Please log in</html>", b"[]", b"{}", b'{"id": 1, "siblings": [1]}', b"\xff", b"null"]
)
def test_something_else_that_answers(hub: HubServer, answer: bytes) -> None:
    hub.api = answer
    with pytest.raises(ModelError, match=r"does not answer like a model hub .* check HF_ENDPOINT"):
        fetch("user/repo")


@pytest.mark.parametrize(
    "name", ["../../evil-Q4_K_M.gguf", "/etc/x-Q4_K_M.gguf", "a\\b-Q4_K_M.gguf", "a\x1b-Q4_K_M.gguf"]
)
def test_names_that_are_no_names(hub: HubServer, name: str) -> None:
    hub.api = json.dumps({"id": "user/repo", "sha": COMMIT, "siblings": [{"rfilename": name}]}).encode()
    with pytest.raises(ModelError, match="has no GGUF model"):
        fetch("user/repo")
    assert not hub.bodies()


def test_a_full_disk(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "_download_to_tmp_and_move", full)
    with pytest.raises(ModelError, match=r"model-Q4_K_M.gguf cannot be fetched: .*No space left"):
        fetch("user/repo")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RpcError, match=r"pip install 'ggml-rpc\[llm\]'"):
        fetch("user/repo")


def test_the_environment_of_a_process(hub: HubServer, tmp_path: Path) -> None:
    """The variables are read where the library reads them; a second process finds what the first fetched."""
    code = "from ggml_rpc.llm.hub import fetch; print(fetch('user/repo'))"
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "*",
    }
    for offline in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**env, "HF_HUB_OFFLINE": offline},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        path = Path(run.stdout.strip())
        assert tmp_path / "home" in path.parents
        assert path.read_bytes() == FILES["model-Q4_K_M.gguf"]
        assert run.stderr == ""
    assert len(hub.bodies()) == 1
