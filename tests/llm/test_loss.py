"""Servers that are killed or hang in the midst of an answer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ggml_rpc.client.remote import RemoteDevice
from ggml_rpc.errors import ConnectionLost, DeadlineExceeded, PlacementError, RpcError, ServerRefused
from ggml_rpc.llm.context import Context
from ggml_rpc.llm.devices import open_devices
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.results import Token
from ggml_rpc.llm.sampling import SamplingParams
from ggml_rpc.llm.session import Redistribution, Session
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.peers.process import ServerProcess, own_server_command
from ggml_rpc.server import Server

from .models import MODELS, cached
from .remote import drained, held, servers

GREEDY = SamplingParams(temperature=0)
SIZES: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 32, "threads": 1, "tensor_split": "1,1"}
SETTINGS = ContextSettings(256, 64, 32)
PROMPT = [(37 * i + 11) % 400 for i in range(70)]
KILLED_AFTER = 5
N_TOKENS = 12


@pytest.fixture(scope="module")
def path() -> Path:
    """Return a random model with layers that have a window."""
    return cached(MODELS["gemma2-wide-heads"], "F32")


@contextmanager
def victim_and_survivor(order: str) -> Iterator[tuple[ServerProcess, Server, list[str]]]:
    """Run a server that may be killed and one that may be looked into; with their endpoints in an order."""
    with ServerProcess(own_server_command(), ["-t", "1"]) as victim, servers(1) as (survivor,):
        pair = [victim.endpoint, survivor.endpoint]
        yield victim, survivor, pair if order == "first" else pair[::-1]


def end(victim: ServerProcess, how: str) -> None:
    """Kill a process, or stop it so that it hangs; wait until that has happened."""
    os.kill(victim.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_the_error_names_the_server_and_all_else_is_freed(path: Path, order: str, how: str) -> None:
    with victim_and_survivor(order) as (victim, survivor, rpc), LLM(path, rpc=rpc, timeout=1.0, **SIZES) as llm:
        generation = llm.generate(PROMPT, sampling=GREEDY, ignore_eos=True)
        for _ in range(KILLED_AFTER):
            next(generation)
        assert held(survivor) > 0
        end(victim, how)
        try:
            expected = (ConnectionLost, ServerRefused) if how == "killed" else DeadlineExceeded
            with pytest.raises(expected, match=victim.endpoint) as caught:
                next(generation)
            assert "\n" not in str(caught.value)
            assert drained(survivor)
            with pytest.raises(ValueError, match="closed"):
                llm.generate(PROMPT)
        finally:
            if how == "hangs":
                os.kill(victim.pid, signal.SIGKILL)


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_the_rest_is_that_of_a_fresh_run_at_the_new_placement(path: Path, order: str, how: str) -> None:
    told: list[Redistribution] = []
    before: list[Token] = []
    after: list[Token] = []
    with victim_and_survivor(order) as (victim, survivor, rpc):
        with LLM(path, rpc=rpc, timeout=1.0, on_loss="redistribute", on_redistribution=told.append, **SIZES) as llm:
            split = llm.model.placement
            generation = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=GREEDY, ignore_eos=True, logprobs=2)
            for token in generation:
                (after if told else before).append(token)
                if len(generation.tokens) == KILLED_AFTER:
                    end(victim, how)
            if how == "hangs":
                os.kill(victim.pid, signal.SIGKILL)
            left = "RPC1" if order == "first" else "RPC0"
            assert set(split.devices) == {"RPC0", "RPC1"}
            assert llm.model.placement.devices == [left]
            assert llm.model.loaded.nbytes.keys() == {llm.model.devices.find(left)}
        assert drained(survivor)
        (loss,) = told
        assert loss.lost == ("RPC0" if order == "first" else "RPC1",)
        assert victim.endpoint in str(loss.cause)
        assert loss.n_tokens == len(PROMPT) + KILLED_AFTER
        assert (len(before), len(after)) == (KILLED_AFTER, N_TOKENS - KILLED_AFTER)

        with LLM(path, rpc=survivor.endpoint, **{**SIZES, "tensor_split": None}) as fresh:
            known = [*PROMPT, *(token.id for token in before)]
            rest = fresh.generate(known, max_tokens=len(after), sampling=GREEDY, ignore_eos=True, logprobs=2)
            # To the last bit: the same graphs over the same weights and the same cache.
            assert list(rest) == after


def test_a_drawn_answer_goes_on_with_the_same_generator(path: Path) -> None:
    seeded = SamplingParams(temperature=1.0, top_k=20, seed=5)
    with LLM(path, **{**SIZES, "tensor_split": None}) as undisturbed:
        whole = undisturbed.generate(PROMPT, max_tokens=N_TOKENS, sampling=seeded, ignore_eos=True)
        whole.finish()
    with (
        victim_and_survivor("last") as (victim, _, rpc),
        LLM(path, rpc=rpc, on_loss="redistribute", **SIZES) as llm,
    ):
        generation = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=seeded, ignore_eos=True)
        for _ in generation:
            if len(generation.tokens) == KILLED_AFTER:
                end(victim, "killed")
    assert generation.tokens == whole.tokens


def test_a_loss_before_the_prompt_is_read(path: Path) -> None:
    with (
        victim_and_survivor("first") as (victim, _, rpc),
        LLM(path, rpc=rpc, on_loss="redistribute", **SIZES) as llm,
    ):
        end(victim, "killed")
        generation = llm.generate(PROMPT, max_tokens=3, sampling=GREEDY, ignore_eos=True)
        generation.finish()
        assert len(generation.tokens) == 3
        assert llm.model.placement.devices == ["RPC1"]
        # And the answer after that finds what it has in common with this one.
        again = llm.generate(PROMPT, max_tokens=3, sampling=GREEDY, ignore_eos=True)
        again.finish()
        assert again.tokens == generation.tokens
        assert again.timings.n_reused == len(PROMPT) - 1


@pytest.mark.parametrize("lost", [0, 1])
def test_a_loss_while_the_prompt_is_read(path: Path, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Context._prepare
    calls = 0

    with servers(2) as running:

        def prepare(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                running[lost].close()
            return original(*args)

        rpc = [server.endpoint for server in running]
        with LLM(path, rpc=rpc, on_loss="redistribute", **SIZES) as llm:
            monkeypatch.setattr(Context, "_prepare", prepare)
            generation = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=GREEDY, ignore_eos=True)
            generation.finish()
            assert llm.model.placement.devices == [f"RPC{1 - lost}"]
        with LLM(path, rpc=rpc[1 - lost], **{**SIZES, "tensor_split": None}) as fresh:
            expected = fresh.generate(PROMPT, max_tokens=N_TOKENS, sampling=GREEDY, ignore_eos=True)
            expected.finish()
    assert calls > 3
    assert generation.tokens == expected.tokens


def test_when_no_server_is_left_this_machine_goes_on(path: Path) -> None:
    told: list[Redistribution] = []
    with servers(2) as running:
        rpc = [server.endpoint for server in running]
        with LLM(path, rpc=rpc, on_loss="redistribute", on_redistribution=told.append, **SIZES) as llm:
            generation = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=GREEDY, ignore_eos=True)
            for _ in generation:
                if len(generation.tokens) in (3, 6):
                    running[len(told)].close()
            assert len(generation.tokens) == N_TOKENS
            assert [loss.lost for loss in told] == [("RPC0",), ("RPC0", "RPC1")]
            assert llm.model.placement.devices == ["CPU"]


def test_devices_that_were_to_take_no_layers_get_none(path: Path) -> None:
    with servers(3) as running:
        rpc = [server.endpoint for server in running]
        with LLM(path, rpc=rpc, device="RPC0,RPC1", on_loss="redistribute", **SIZES) as llm:
            generation = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=GREEDY, ignore_eos=True)
            for _ in generation:
                if len(generation.tokens) in (3, 6):
                    running[0 if len(generation.tokens) == 3 else 1].close()
                if len(generation.tokens) == 5:
                    assert llm.model.placement.devices == ["RPC1"]
            assert llm.model.placement.devices == ["CPU"]


def test_both_servers_lost_at_once(path: Path) -> None:
    with servers(2) as running:
        rpc = [server.endpoint for server in running]
        with LLM(path, rpc=rpc, on_loss="redistribute", **SIZES) as llm:
            generation = llm.generate(PROMPT, max_tokens=N_TOKENS, sampling=GREEDY, ignore_eos=True)
            for _ in generation:
                if len(generation.tokens) == KILLED_AFTER:
                    for server in running:
                        server.close()
            assert len(generation.tokens) == N_TOKENS
            assert llm.model.placement.devices == ["CPU"]


def test_what_does_not_fit_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        victim_and_survivor("last") as (victim, survivor, rpc),
        open_devices(rpc, threads=1) as devices,
        Model.open(path, devices, tensor_split="1,1", settings=SETTINGS) as model,
    ):
        session = Session(model, on_loss="redistribute")
        session.decode(PROMPT)
        end(victim, "killed")
        monkeypatch.setattr(RemoteDevice, "memory", lambda self: (1000, 1 << 30))
        monkeypatch.setattr(type(devices.host), "memory", lambda self: (1000, 1 << 30))
        with pytest.raises(PlacementError, match=f"{victim.endpoint} .* does not fit") as caught:
            session.decode([1])
        first, *table = str(caught.value).splitlines()
        assert "RPC0 lacks" in first
        assert table == caught.value.table.splitlines()
        assert {line.split()[0] for line in table} == {"device", "RPC0"}
        assert isinstance(caught.value.__cause__, RpcError)
        # What the caller's own connection held is freed, as far as it still stands.
        monkeypatch.undo()
        devices.remote[0].memory()
        assert held(survivor) == 0


def test_an_error_that_is_no_loss_is_passed_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers(1) as (server,), LLM(path, rpc=server.endpoint, n_ctx=256, on_loss="redistribute") as llm:
        generation = llm.generate(PROMPT, sampling=GREEDY, ignore_eos=True)
        next(generation)

        class Odd(RpcError):
            pass

        def fail(*_: Any, **__: Any) -> None:
            raise Odd

        with monkeypatch.context() as patched:
            patched.setattr(type(llm._session.context), "decode", fail)
            with pytest.raises(Odd):
                next(generation)
        assert generation.reason == "error"
        again = llm.generate(PROMPT, sampling=GREEDY, ignore_eos=True)
        next(again)  # nothing was closed


def test_wrong_policy(path: Path) -> None:
    with pytest.raises(ValueError, match="'error' or 'redistribute'"):
        LLM(path, n_ctx=256, on_loss="panic")  # type: ignore[arg-type]
