"""Chat templates: what real ones make of a conversation, and that a hostile one ends."""

from __future__ import annotations

from typing import Any

import pytest

from ggml_rpc.errors import ModelError, RpcError
from ggml_rpc.llm.chat import ChatTemplate
from ggml_rpc.llm.tokenizer import Tokenizer

from .tokenizer.toy import bpe_metadata

SPECIAL = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>")
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue? "},
    {"role": "assistant", "content": "Scattering."},
    {"role": "user", "content": "<b>Really?</b>"},
]

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{%- set first = messages[0]['content'] + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}
    {{- message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

LLAMA3 = """\
{% set loop_messages = messages %}
{% for message in loop_messages %}
    {%- set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim %}
    {%- if loop.index0 == 0 %}
        {%- set content = bos_token + content %}
    {%- endif %}
    {{- content + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{- '<|im_start|>assistant\\n' + message.content + '<|im_end|>\\n' }}{%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- if loop.index0 == ns.last and enable_thinking is defined and enable_thinking is false %}{{ ' /no_think' }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

PHI3 = """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% else %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(
        bpe_metadata(special=SPECIAL, bos_token_id=258, eos_token_id=259, add_bos_token=True)
    )


def template(source: Any, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.from_metadata({"tokenizer.chat_template": source}, tokenizer)


def test_gemma(tokenizer: Tokenizer) -> None:
    chat = template(GEMMA, tokenizer)
    assert chat.note is None
    assert chat.render(CONVERSATION) == (
        "<bos><start_of_turn>user\nBe brief.\n\nWhy is the sky blue?<end_of_turn>\n"
        "<start_of_turn>model\nScattering.<end_of_turn>\n"
        "<start_of_turn>user\n<b>Really?</b><end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(ModelError, match="refuses these messages: roles must alternate"):
        chat.render(CONVERSATION[2:])


def test_llama3(tokenizer: Tokenizer) -> None:
    assert template(LLAMA3, tokenizer).render(CONVERSATION[1:3], add_generation_prompt=False) == (
        "<bos><|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nScattering.<|eot_id|>"
    )


def test_qwen_with_tools_and_variables(tokenizer: Tokenizer) -> None:
    chat = template(QWEN, tokenizer)
    tool = {"name": "größe", "parameters": {"a": "<int>"}}
    assert chat.render(CONVERSATION[1:], tools=[tool], enable_thinking=False) == (
        '<|im_start|>system\n# Tools\n\n{"name": "größe", "parameters": {"a": "<int>"}}<|im_end|>\n'
        "<|im_start|>user\nWhy is the sky blue? <|im_end|>\n"
        "<|im_start|>assistant\nScattering.<|im_end|>\n"
        "<|im_start|>user\n<b>Really?</b> /no_think<|im_end|>\n<|im_start|>assistant\n"
    )


def test_phi3(tokenizer: Tokenizer) -> None:
    chat = template(PHI3, tokenizer)
    assert chat.render(CONVERSATION[:2]) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nWhy is the sky blue? <|end|>\n<|assistant|>\n"
    )
    assert chat.render(CONVERSATION[1:2], False) == "<|user|>\nWhy is the sky blue? <|end|>\n<eos>"


def test_without_a_template_chatml_is_used_and_told(tokenizer: Tokenizer) -> None:
    chat = ChatTemplate.from_metadata({}, tokenizer)
    assert chat.note == "the model file has no chat template: ChatML is used"
    assert chat.stop == ("<|im_end|>",)
    assert chat.render(CONVERSATION[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue? <|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_ids_have_the_start_token_once(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "ab"}]
    ids = template(GEMMA, tokenizer).encode(messages)
    assert [ids.count(258), ids[0], tokenizer.decode(ids, special=True)] == [
        1,
        258,
        "<bos><start_of_turn>user\nab<end_of_turn>\n<start_of_turn>model\n",
    ]
    assert tokenizer.token_id("<start_of_turn>") == ids[1]
    assert ChatTemplate.from_metadata({}, tokenizer).encode(messages)[0] == 258


def test_the_day_can_be_asked(tokenizer: Tokenizer) -> None:
    assert template("{{ strftime_now('%Y') }}", tokenizer).render([]).isdigit()


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
        ("{% if %}", "does not work: Expected an expression"),
        ("{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% include '/etc/passwd' %}", "does not work"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "too much memory",
        ),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 16777216 characters"),
        ("{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}", "too much memory"),
        ("{{" + "(" * 100000, "too much memory"),
        (" " * ((1 << 20) + 1), "has 1048577 characters"),
        ("{{ raise_exception('no\n\n tools' ~ '!' * 5000) }}", "refuses these messages: no tools!"),
        ("{{ raise_exception('\x1b]52;c;aGk=\x07\x9b2J') }}", "refuses these messages: \ufffd]52;"),
        ("{{ nothing['\x1b[2J'].at_all }}", "does not work"),
        (7, "is not a text"),
    ],
)
def test_faulty_and_hostile_templates_end_with_a_line(source: Any, line: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match=line) as caught:
        template(source, tokenizer).render(CONVERSATION)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_templates_that_do_not_end_are_ended(source: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match=r"did not end within 1 s|too much memory|could not be rendered"):
        ChatTemplate(source, tokenizer, deadline=1.0).render([])


def test_messages_must_be_what_json_holds(tokenizer: Tokenizer) -> None:
    with pytest.raises(RpcError, match="cannot be given these messages"):
        template(GEMMA, tokenizer).render([{"role": "user", "content": b"bytes"}])
