"""Text from models: the same wherever they lie, in pieces and whole, with all ends that it can have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggml_rpc
from ggml_rpc.errors import ComputeError, ContextError, ModelError
from ggml_rpc.llm.generate import LLM
from ggml_rpc.llm.model import Model
from ggml_rpc.llm.perplexity import nll_of, perplexity
from ggml_rpc.llm.results import Token
from ggml_rpc.llm.sampling import Sampler, SamplingParams
from ggml_rpc.llm.sizing import ContextSettings
from ggml_rpc.llm.ubatch_graph import Best
from ggml_rpc.peers import prepare_model, prepare_peer
from ggml_rpc.peers.process import PATIENT, ServerProcess
from ggml_rpc.server import Server
from tests.e2e.conftest import need

from .models import MODELS, RandomModel, cached
from .reference import stock_logits
from .remote import drained, endpoints, held, servers

WIDE = RandomModel("wide", "llama", n_embd=64, n_ff=64, n_head=2, n_head_kv=1, head_dim=32, n_vocab=4096)
GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(temperature=1.0, top_k=20, seed=3)
SIZES: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 32, "threads": 1}
PROMPT = "The quick brown fox jumps over the lazy dog and runs into the old forest."


@pytest.fixture(scope="module")
def path() -> Path:
    """Return a random model with a vocabulary."""
    return cached(MODELS["llama-bpe"], "F32")


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Server]]:
    """Run two servers."""
    with servers(2) as running:
        yield running


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[LLM]:
    """Return the model on this machine's CPU."""
    with LLM(path, **SIZES) as model:
        yield model


@pytest.fixture(scope="module")
def expected(path: Path) -> list[int]:
    """Return the best continuation, found without anything of what is tested here but the context."""
    with Model.open(path, settings=ContextSettings(256, 64, 32)) as model, model.context() as context:
        tokens = model.tokenizer.encode(PROMPT)
        out: list[int] = []
        for _ in range(24):
            logits = context.decode(out[-1:] or tokens).logits
            assert logits is not None
            out.append(int(np.argmax(logits[0])))
        return out


# ---- The same everywhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (0, {}),
        (1, {}),
        (2, {"tensor_split": "1,1"}),
        (2, {"tensor_split": [1, 3], "n_gpu_layers": 3}),
        (2, {"device": "RPC1,CPU", "tensor_split": "1,1"}),
        (2, {"device": "none"}),
        (1, {"override_tensor": r"ffn_(up|down)=CPU"}),
        (1, {"override_tensor": ["token_embd=RPC0", r"blk\.1\.=CPU"]}),
        (1, {"flash_attn": False}),
        (2, {"main_device": "RPC1"}),
    ],
)
def test_greedy_text_is_the_same_everywhere(
    path: Path, pair: list[Server], expected: list[int], n: int, options: dict[str, Any]
) -> None:
    with LLM(path, rpc=endpoints(pair[:n]), **SIZES, **options) as llm:
        generation = llm.generate(PROMPT, max_tokens=24, sampling=GREEDY, ignore_eos=True)
        assert [token.id for token in generation] == expected
        assert generation.tokens == expected
        assert generation.reason == "length"
    assert all(drained(server) for server in pair)


def test_a_seed_gives_the_same_tokens_from_few_logits_as_from_all(llm: LLM) -> None:
    few = llm.generate(PROMPT, max_tokens=32, sampling=SEEDED, ignore_eos=True)
    few.finish()
    every = llm.generate(PROMPT, max_tokens=32, sampling=SEEDED, ignore_eos=True, logprobs=3)
    rows = list(every)
    assert few.tokens == every.tokens
    assert (few.seed, every.seed) == (3, 3)
    for token in rows:
        assert token.logprob is not None
        assert len(token.likeliest) == 3
        best = [p for _, p in token.likeliest]
        assert best == sorted(best, reverse=True)
        assert token.logprob <= best[0] < 0
        assert dict(token.likeliest).get(token.id, token.logprob) == token.logprob


def test_logprobs_are_those_of_the_model(llm: LLM, path: Path) -> None:
    tokens = llm.tokenize(PROMPT)
    token = next(llm.generate(tokens, sampling=GREEDY, logprobs=512))
    with Model.open(path, settings=ContextSettings(256, 64, 32)) as model, model.context() as context:
        logits = context.decode(tokens).logits
    assert logits is not None
    row = logits[0].astype(np.float64)
    want = row - np.log(np.exp(row).sum())
    np.testing.assert_allclose([p for _, p in token.likeliest], np.sort(want)[::-1], rtol=1e-4)
    assert token.logprob == pytest.approx(want.max(), rel=1e-4)


def test_only_what_is_needed_crosses_the_network(path: Path, pair: list[Server]) -> None:
    server = pair[0]

    def sent_for(llm: LLM, **options: Any) -> int:
        generation = llm.generate(PROMPT, **options)
        list(islice(generation, 4))
        (connection,) = server._connections
        before = connection.session.stats()["sent"]
        next(generation)
        return connection.session.stats()["sent"] - before

    with LLM(path, rpc=server.endpoint, **SIZES) as llm:
        n_vocab = llm.model.hparams.n_vocab
        assert sent_for(llm, sampling=GREEDY) < 64
        assert sent_for(llm, sampling=SEEDED) < 64 + 21 * 8
        assert sent_for(llm, sampling=SEEDED, logprobs=0) > 4 * n_vocab
    assert drained(server)


@pytest.mark.parametrize("proto", ["8.0.0", "3.0.0"])
def test_penalties_need_few_logits_too(proto: str) -> None:
    wide = cached(WIDE, "F32")
    penal = SamplingParams(
        temperature=1.0, top_k=20, seed=3, repeat_penalty=1.3, logit_bias={7: 2.0, 11: float("-inf")}
    )
    prompt = [(13 * i) % 4000 for i in range(40)]
    with servers(1, protocols=proto) as (server,), LLM(wide, rpc=server.endpoint, **SIZES) as llm:
        few = llm.generate(prompt, max_tokens=70, sampling=penal, ignore_eos=True)
        list(islice(few, 10))
        (connection,) = server._connections
        before = connection.session.stats()["sent"]
        next(few)
        assert connection.session.stats()["sent"] - before < 1500  # a row has 16384 bytes
        few.finish()
        every = llm.generate(prompt, max_tokens=70, sampling=penal, ignore_eos=True, logprobs=0)
        every.finish()
    assert few.tokens == every.tokens
    assert 11 not in few.tokens


def test_logits_of_given_tokens() -> None:
    extra = [5, 4095, 5, 0]
    with Model.open(cached(WIDE, "F32"), settings=ContextSettings(256, 64, 32)) as model, model.context() as context:
        tokens = [(13 * i) % 4000 for i in range(70)]
        whole = context.decode(tokens, logits=[3, 40, 69]).logits
        context.clear()
        part = context.decode(tokens, logits=[3, 40, 69], best=Best(3, 4), extra=extra)
        assert whole is not None
        assert part.extra is not None
        assert part.logits is not None
        np.testing.assert_allclose(part.extra, whole[:, extra], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(part.logits, -np.sort(-whole, axis=1)[:, :3], rtol=1e-5, atol=1e-5)
        for best, given in (
            (Best(3, 4), [1, 2, 3]),
            (Best(3), [1]),
            (None, [1]),
            (Best(3, 1), [4096]),
            (Best(3, 1), [-1]),
        ):
            held_before = context.n_past
            with pytest.raises(ContextError, match=r"given|vocabulary"):
                context.decode([1], best=best, extra=given)
            assert context.n_past == held_before


# ---- Text ------------------------------------------------------------------------------------------------------------


def test_text_comes_in_pieces(llm: LLM) -> None:
    heard: list[Token] = []
    generation = llm.generate(PROMPT, max_tokens=40, sampling=SEEDED, ignore_eos=True, on_token=heard.append)
    pieces = list(generation)
    assert heard == pieces
    assert "".join(token.text for token in pieces) == generation.text
    whole = b"".join(llm.tokenizer.piece(token) for token in generation.tokens)
    assert generation.text == whole.decode("utf-8", "replace")


def test_stop_strings_end_the_text(llm: LLM) -> None:
    whole = llm.generate(PROMPT, max_tokens=40, sampling=SEEDED, ignore_eos=True).finish()
    stop = whole[10:13]
    generation = llm.generate(PROMPT, max_tokens=40, sampling=SEEDED, ignore_eos=True, stop=["\0never", stop])
    assert generation.finish() == whole[: whole.index(stop)]
    assert (generation.reason, generation.stop_string) == ("stop", stop)


def test_what_could_have_become_a_stop_string_comes_at_the_end(llm: LLM) -> None:
    whole = llm.generate(PROMPT, max_tokens=12, sampling=SEEDED, ignore_eos=True).finish()
    generation = llm.generate(PROMPT, max_tokens=12, sampling=SEEDED, ignore_eos=True, stop=[whole[-2:] + "\0"])
    assert generation.finish() == whole
    assert generation.reason == "length"


def test_a_token_that_ends_answers(llm: LLM) -> None:
    end = min(llm.tokenizer.end_ids)
    wanted = SamplingParams(temperature=0, logit_bias={end: 1e6})
    generation = llm.generate(PROMPT, sampling=wanted)
    assert [(token.id, token.text) for token in generation] == [(end, "")]
    assert generation.reason == "stop"
    going_on = llm.generate(PROMPT, sampling=wanted, ignore_eos=True, max_tokens=3)
    going_on.finish()
    assert going_on.tokens == [end] * 3


def test_penalties_see_the_prompt(llm: LLM) -> None:
    tokens = llm.tokenize(PROMPT)
    best = next(llm.generate(tokens, sampling=GREEDY)).id
    banned = SamplingParams(temperature=0, presence_penalty=1e6, repeat_last_n=-1)
    other = next(llm.generate([*tokens[:-1], best, tokens[-1]], sampling=banned)).id
    assert other not in {*tokens, best}


def test_chat_is_the_template_encoded(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    generation = llm.chat(messages, max_tokens=2, sampling=GREEDY)
    assert generation.prompt == llm.template.encode(messages)
    generation.finish()
    assert len(generation.tokens) <= 2


def test_what_is_no_conversation_or_prompt_is_named(llm: LLM) -> None:
    wrong: list[tuple[Any, type[Exception], str]] = [
        ("Hello", TypeError, "list of mappings"),
        (["Hello"], TypeError, "list of mappings"),
        ({"role": "user", "content": "Hello"}, TypeError, "list of mappings"),
        ([], ValueError, "no messages"),
        ([{"role": "user", "content": "Hello"}, {"content": "x"}], ValueError, "message 1 has no role; it has content"),
    ]
    for messages, kind, says in wrong:
        with pytest.raises(kind, match=says):
            llm.chat(messages)
    prompt: Any = b"Hello"
    with pytest.raises(TypeError, match="not bytes"):
        llm.generate(prompt)


# ---- The context -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-bpe", "gemma2-wide-heads"])
def test_a_common_beginning_is_not_computed_again(name: str) -> None:
    with LLM(cached(MODELS[name], "F32"), **SIZES) as llm:
        tokens = [(37 * i + 11) % 400 for i in range(80)]
        first = llm.generate(tokens, max_tokens=8, sampling=GREEDY, ignore_eos=True)
        first.finish()
        assert first.timings.n_reused == 0
        longer = tokens + first.tokens[:4] + [5, 6, 7]
        second = llm.generate(longer, max_tokens=8, sampling=GREEDY, ignore_eos=True)
        second.finish()
        assert second.timings.n_reused == len(tokens) + 4
        again = llm.generate(longer, max_tokens=8, sampling=GREEDY, ignore_eos=True)
        again.finish()
        assert again.timings.n_reused == len(longer) - 1
        other = llm.generate([9, *longer], max_tokens=1, sampling=GREEDY, ignore_eos=True)
        other.finish()
        assert other.timings.n_reused == 0
    with LLM(cached(MODELS[name], "F32"), **SIZES) as fresh:
        alone = fresh.generate(longer, max_tokens=8, sampling=GREEDY, ignore_eos=True)
        alone.finish()
    assert second.tokens == again.tokens == alone.tokens


def test_whole_windows_can_be_left_in_the_middle() -> None:
    path = cached(MODELS["gemma2-wide-heads"], "F32")
    long = [(37 * i + 11) % 400 for i in range(400)]
    changed = [*long[:100], 5, *long[100:380]]  # a ring of 256 holds what a token at 100 sees no more
    rests, reused = [], []
    for whole_window in (False, True):
        with LLM(path, **{**SIZES, "n_ctx": 512}, whole_window=whole_window) as llm:
            for prompt in (long, changed):
                generation = llm.generate(prompt, max_tokens=6, sampling=GREEDY, ignore_eos=True)
                generation.finish()
            rests.append(generation.tokens)
            reused.append(generation.timings.n_reused)
    assert rests[0] == rests[1]
    assert reused == [0, 100]


def test_a_full_context_ends_the_text(llm: LLM) -> None:
    prompt = [(7 * i) % 300 for i in range(250)]
    generation = llm.generate(prompt, sampling=GREEDY, ignore_eos=True)
    generation.finish()
    # The last token needs no place of its own: nothing is asked after it.
    assert len(generation.tokens) == llm.n_ctx - len(prompt) + 1
    assert generation.reason == "length"
    full = llm.generate([1] * llm.n_ctx, sampling=GREEDY, ignore_eos=True)
    full.finish()
    assert len(full.tokens) == 1


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([1] * 257, "257 tokens, the context 256"),
        ([], "empty"),
        ([1, 512], "512, which is no token of 512"),
        ([-1], "-1, which is no token"),
    ],
)
def test_prompts_that_cannot_be(prompt: list[int], said: str) -> None:
    with LLM(cached(MODELS["llama"], "F32"), **SIZES) as llm:
        before = llm.generate([1, 2, 3], max_tokens=2, sampling=GREEDY)
        next(before)
        with pytest.raises(ContextError, match=said) as caught:
            llm.generate(prompt)
        assert "\n" not in str(caught.value)
        assert next(before).text == ""  # nothing has happened to it; without a vocabulary there are ids alone


def test_text_needs_a_vocabulary() -> None:
    with LLM(cached(MODELS["llama"], "F32"), **SIZES) as llm, pytest.raises(ModelError, match="no vocabulary"):
        llm.generate("text")


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"logprobs": -1}, {"stop": [""]}])
def test_wrong_options(llm: LLM, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must (be|not be)"):
        llm.generate(PROMPT, **options)


def test_a_later_generation_takes_over(llm: LLM) -> None:
    first = llm.generate(PROMPT, sampling=GREEDY, ignore_eos=True)
    next(first)
    llm.generate(PROMPT, sampling=GREEDY)
    with pytest.raises(ValueError, match="another generation"):
        next(first)


def test_cancelling(llm: LLM) -> None:
    generation = llm.generate(PROMPT, sampling=GREEDY, ignore_eos=True)
    for token in generation:
        if len(generation.tokens) == 5:
            assert token.id == generation.tokens[-1]
            generation.cancel()
    assert (len(generation.tokens), generation.reason) == (5, "cancelled")


def test_an_answer_ends_with_its_error(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [token.id for token in llm.generate(PROMPT, max_tokens=8, sampling=GREEDY)]
    answer = llm.generate(PROMPT, max_tokens=8, sampling=GREEDY)
    assert [next(answer).id, next(answer).id] == whole[:2]

    def fail(*_: object) -> int:
        raise ComputeError("NaN among the logits")

    with monkeypatch.context() as patched:
        patched.setattr(Sampler, "next", fail)
        with pytest.raises(ComputeError, match=r"NaN among the logits \(computed by CPU\)"):
            next(answer)
    # The context holds the second token already: to go on would decode it again.
    assert answer.reason == "error"
    assert list(answer) == []
    assert [token.id for token in llm.generate(PROMPT, max_tokens=8, sampling=GREEDY)] == whole


def test_warming_up_leaves_no_trace(llm: LLM) -> None:
    once = llm.generate(PROMPT, max_tokens=8, sampling=GREEDY, ignore_eos=True)
    once.finish()
    llm.warm_up()
    again = llm.generate(PROMPT, max_tokens=8, sampling=GREEDY, ignore_eos=True)
    again.finish()
    assert once.tokens == again.tokens


def test_timings_count(llm: LLM) -> None:
    llm.warm_up()
    generation = llm.generate(PROMPT, max_tokens=5, sampling=GREEDY, ignore_eos=True)
    generation.finish()
    t = generation.timings
    assert (t.n_prompt, t.n_reused, t.n_generated) == (len(generation.prompt), 0, 4)
    assert t.prompt_rate > 0
    assert t.generate_rate > 0


def test_closing_frees_everything(path: Path, pair: list[Server]) -> None:
    with LLM(path, rpc=endpoints(pair), tensor_split="1,1", **SIZES) as llm:
        generation = llm.generate(PROMPT, sampling=GREEDY, ignore_eos=True)
        next(generation)
        assert all(held(server) > 0 for server in pair)
        llm.close()
        assert all(drained(server) for server in pair)
        with pytest.raises(ValueError, match="closed"):
            next(generation)
        with pytest.raises(ValueError, match="closed"):
            llm.generate(PROMPT)


def test_devices_of_the_caller_stay_open(path: Path, pair: list[Server]) -> None:
    from ggml_rpc.llm.devices import open_devices  # noqa: PLC0415

    with open_devices(endpoints(pair), threads=1) as devices:
        for _ in range(2):
            with LLM(path, devices=devices, n_ctx=256, tensor_split="1,1") as llm:
                next(llm.generate(PROMPT, sampling=GREEDY))
            for device in devices.remote:
                device.memory()
            assert [held(server) for server in pair] == [0, 0]


# ---- Perplexity ------------------------------------------------------------------------------------------------------


def test_perplexity_scores_the_second_half_of_each_window(path: Path) -> None:
    text = [(53 * i + 7) % 509 for i in range(150)]
    with Model.open(path, settings=ContextSettings(256, 64, 32)) as model:
        scores = list(perplexity(model, text, n_ctx=64))
        assert [score.window for score in scores] == [0, 1]
        expected = []
        with model.context() as context:
            for window in range(2):
                inputs = text[window * 64 : window * 64 + 64]
                targets = np.array(inputs[1:])
                if model.tokenizer.adds_bos:
                    inputs[0] = model.tokenizer.bos_id or 0
                context.clear()
                logits = context.decode(inputs[:-1], logits="all").logits
                assert logits is not None
                rows = logits.astype(np.float64)[32:]
                log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
                expected.append(-log_p[np.arange(31), targets[32:]])
        for score, nll in zip(scores, expected, strict=True):
            np.testing.assert_allclose(score.nll, nll, rtol=1e-4)
        every = np.concatenate(expected)
        assert scores[-1].n_tokens == 62
        assert scores[-1].perplexity == pytest.approx(np.exp(every.mean()), rel=1e-4)
        assert scores[-1].error == pytest.approx(np.exp(every.mean()) * every.std() / np.sqrt(61), rel=1e-3)
        assert len(list(perplexity(model, text, n_ctx=32, n_windows=3))) == 3
        for wrong in ({"n_ctx": 80}, {"n_ctx": 2}, {"n_ctx": 32, "n_windows": 0}):
            with pytest.raises(ContextError):
                perplexity(model, text, **wrong)


@pytest.mark.peer
@pytest.mark.parametrize("name", ["llama-bpe", "gemma3"])
def test_scores_are_stocks(name: str) -> None:
    need("stock peer 8.0", lambda: prepare_peer("8.0"))
    path = cached(MODELS[name], "F32")
    tokens = [(53 * i + 7) % 509 for i in range(200)]
    rows = stock_logits(path, tokens[:-1]).astype(np.float64)
    log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(199), tokens[1:]]
    settings = ContextSettings(256, 64, 32, flash_attn=False)
    with Model.open(path, settings=settings) as model, model.context() as context:
        np.testing.assert_allclose(nll_of(context, tokens[:-1], tokens[1:]), expected, rtol=1e-3)


# ---- A real model ----------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_gemma_says_the_same_on_stock_and_own_servers() -> None:
    path = need("model", prepare_model)
    peer = need("stock peer 8.0", lambda: prepare_peer("8.0"))
    options: dict[str, Any] = {"n_ctx": 256, "n_ubatch": 64, "threads": 1}
    texts = []
    with ExitStack() as stack:
        stock = stack.enter_context(ServerProcess(peer.driver_command(["serve"]), ["-t", "1"], environment=PATIENT))
        own = stack.enter_context(servers(2))
        for rpc, split in (
            (endpoints(own), "1,1"),
            ([stock.endpoint], None),
            ([stock.endpoint, own[0].endpoint], "1,1"),
            ([], None),
        ):
            with LLM(path, rpc=rpc, tensor_split=split, **options) as llm:
                generation = llm.generate("The capital of France is", max_tokens=8, sampling=GREEDY)
                texts.append(generation.finish())
        assert all(drained(server) for server in own)
    assert texts == [texts[0]] * 4
    assert " the" in texts[0]


# ---- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ggml_rpc.__all__ if name != "__version__"])
def test_names_of_the_package(name: str) -> None:
    assert getattr(ggml_rpc, name).__name__ == name
    assert name in dir(ggml_rpc)


def test_other_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = ggml_rpc.nothing_such
