"""Chat templates: the text that a model file makes of a conversation."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError, RpcError
from .tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
MAX_TEMPLATE = 1 << 20  # characters
MAX_LINE = 300  # characters of a message that a template writes
_CHATML_END = "<|im_end|>"
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_WORKER = "import sys; sys.path[:] = sys.argv[1:]; from ggml_rpc.llm.chat_worker import main; sys.exit(main())"


class ChatTemplate:
    """Turn a conversation into the text that a model was trained on.

    A template is a program that comes with the model. It is run in Jinja2's sandbox in a process of its own, with
    limits on memory and time; that costs about a tenth of a second.

    Parameters
    ----------
    source : str
        The template.
    tokenizer : Tokenizer
        Names the tokens that start and end a text, and encodes.
    deadline : float
        Seconds that rendering may take.
    note : str or None
        What a user should know about the template.
    stop : tuple of str
        Texts that end an answer where the model has no token for that.

    Attributes
    ----------
    source : str
        The template.
    note : str or None
        What a user should know about the template, such as that the model file has none.
    stop : tuple of str
        Texts that end an answer where the model has no token for that.

    Raises
    ------
    ModelError
        If the template is too long.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        deadline: float = 10.0,
        note: str | None = None,
        stop: tuple[str, ...] = (),
    ) -> None:
        if len(source) > MAX_TEMPLATE:
            raise ModelError(f"the model's chat template has {len(source)} characters, more than {MAX_TEMPLATE}")
        self.source = source
        self.note = note
        self.stop = stop
        self._tokenizer = tokenizer
        self._deadline = deadline
        self._bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
        self._eos = "" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """Take the template of a model file; ChatML, and a note that says so, if the file has none.

        Parameters
        ----------
        metadata : mapping of str to object
            Keys and values of the GGUF file.
        tokenizer : Tokenizer
            The tokenizer of the same file.

        Raises
        ------
        ModelError
            If the template is no text or too long.
        """
        source = metadata.get(KEY)
        if source is None:
            note = "the model file has no chat template: ChatML is used"
            return cls(_CHATML, tokenizer, note=note, stop=(_CHATML_END,))
        if not isinstance(source, str):
            raise ModelError(f"{KEY} of the model file is not a text")
        return cls(source, tokenizer)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the text of a conversation.

        Parameters
        ----------
        messages : sequence of mapping
            Each has ``role`` (``system``, ``user``, ``assistant``) and ``content``; what else, the template decides.
        add_generation_prompt : bool
            End with the beginning of the model's answer.
        **variables
            More for the template, such as ``tools`` or ``enable_thinking``; what JSON can hold.

        Raises
        ------
        ModelError
            If the template is faulty, refuses the messages, or exceeds its limits.
        RpcError
            If messages or variables are not what JSON can hold.
        """
        given = {
            "bos_token": self._bos,
            "eos_token": self._eos,
            **variables,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            job = json.dumps({"template": self.source, "variables": given, "seconds": self._deadline})
        except (TypeError, ValueError, RecursionError) as error:
            raise RpcError(f"a chat template cannot be given these messages: {error}") from error
        command = [sys.executable, "-I", "-c", _WORKER, *sys.path]
        try:
            done = subprocess.run(command, check=False, input=job.encode(), capture_output=True, timeout=self._deadline)
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"the model's chat template did not end within {self._deadline:g} s") from error
        if done.returncode != 0:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            cause = lines[-1] if lines else f"its process ended with status {done.returncode}"
            raise ModelError(f"the model's chat template could not be rendered: {_line(cause)}")
        result = json.loads(done.stdout)
        if "refused" in result:
            raise ModelError(f"the model's chat template refuses these messages: {_line(result['refused'])}")
        if "failed" in result:
            raise ModelError(f"the model's chat template does not work: {_line(result['failed'])}")
        text: str = result["text"]
        return text

    def encode(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Return the token ids of a conversation, with the start token once, be it the template's or the tokenizer's.

        Parameters
        ----------
        messages, add_generation_prompt, **variables
            As for `render`.

        Raises
        ------
        ModelError
            As `render` and `Tokenizer.encode` do.
        """
        text = self.render(messages, add_generation_prompt, **variables)
        if self._tokenizer.adds_bos and self._bos:
            text = text.removeprefix(self._bos)
        if self._tokenizer.adds_eos and self._eos:
            text = text.removesuffix(self._eos)
        return self._tokenizer.encode(text, parse_special=True)


def _line(text: str) -> str:
    """Make one line of what a template, or its failure, says; nothing that steers a terminal."""
    line = " ".join(text.split())[:MAX_LINE]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
