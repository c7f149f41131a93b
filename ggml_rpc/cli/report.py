"""What a run tells: text and notes for people, or one JSON event a line for programs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from .progress import Bars
from .text import count, ranges, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggml_rpc.llm.generation import Generation
    from ggml_rpc.llm.loader import LoadProgress
    from ggml_rpc.llm.model import Model
    from ggml_rpc.llm.results import Timings, Token
    from ggml_rpc.llm.session import Redistribution
    from ggml_rpc.llm.weights import ModelFile


# general.file_type of a GGUF file: what the file as a whole is called.
FILE_TYPES = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"},
    **{12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS"},
    **{20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M"},
    **{28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4"},
}
MAX_LABEL = 32
"""Characters of a size that a file names itself by; `E128x17B` and the like are real."""
# What steers a terminal, but for the ends of lines and tabs.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n\r"}


@dataclass(frozen=True)
class Description:
    """Describe a model.

    Parameters
    ----------
    name : str
        Architecture, size and type of its weights, such as ``gemma3 270M Q4_K_M``.
    size : int
        Bytes of its tensors.
    params : int
        Numbers in them.
    """

    name: str
    size: int
    params: int


def describe(model: ModelFile) -> Description:
    """Return what a model's file says about it."""
    tensors = model.file.tensors.values()
    n_bytes = sum(t.nbytes for t in tensors)
    params = 0
    by_type: dict[str, int] = {}
    for t in tensors:
        n = t.ne[0] * t.ne[1] * t.ne[2] * t.ne[3]
        params += n
        by_type[t.type] = by_type.get(t.type, 0) + n
    label = model.file.metadata.get("general.size_label")
    file_type = model.file.metadata.get("general.file_type")
    kind = FILE_TYPES.get(file_type) if isinstance(file_type, int) else None
    # Any text can stand there, and it goes to a terminal.
    if not isinstance(label, str) or not label.isprintable() or not 0 < len(label) <= MAX_LABEL:
        label = count(params).replace(" ", "")
    parts = (model.architecture.name, label)
    return Description(" ".join((*parts, kind or max(by_type, key=by_type.__getitem__))), n_bytes, params)


def placed(model: Model) -> list[dict[str, Any]]:
    """Return where a model is: an entry for each device, in the order in which layers use them."""
    placement = model.placement
    endpoints = {device.name: device.endpoint for device in model.devices.all}
    return [
        {
            "device": name,
            "endpoint": endpoints[name],
            "layers": [i for i, owner in enumerate(placement.layers) if owner == name],
            "output": placement.output == name,
        }
        for name in placement.devices
    ]


def held(model: Model) -> list[dict[str, Any]]:
    """Return where a model is and how much each device holds of it; asks the devices what is free."""
    used = {use.room.name: use for use in model.usage()}
    return [
        {
            **row,
            "weights_bytes": used[row["device"]].weights,
            "cache_bytes": used[row["device"]].cache,
            "compute_bytes": used[row["device"]].compute,
        }
        for row in placed(model)
    ]


def device_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for each device."""
    lines = []
    for row in rows:
        what = [f"layers {ranges(row['layers'])}"] if row["layers"] else []
        what += ["output"] if row["output"] else []
        where = f" ({row['endpoint']})" if row["endpoint"] else ""
        parts = [" and ".join(what) or "single weights"]
        if "weights_bytes" in row:
            parts += [f"{name} {size(row[f'{name}_bytes'])}" for name in ("weights", "cache", "compute")]
        lines.append(f"  {row['device']}{where}: {', '.join(parts)}")
    return lines


def timing_fields(timings: Timings) -> dict[str, float]:
    """Return timings for a JSON event."""
    return {
        "prompt_tokens": timings.n_prompt,
        "reused_tokens": timings.n_reused,
        "prompt_seconds": timings.prompt_seconds,
        "prompt_rate": timings.prompt_rate,
        "generated_tokens": timings.n_generated,
        "generate_seconds": timings.generate_seconds,
        "generate_rate": timings.generate_rate,
    }


class Report(ABC):
    """Take what happens in a run."""

    @abstractmethod
    def fetching(self, name: str, done: int, total: int | None) -> None:
        """Tell how far a download is."""

    @abstractmethod
    def loading(self, progress: LoadProgress) -> None:
        """Tell how far a device is. Called from the loading threads, one at a time."""

    @abstractmethod
    def loaded(self, model: Model, n_ctx: int, seconds: float) -> None:
        """Tell where everything is."""

    @abstractmethod
    def prompt(self, text: str) -> None:
        """Show the prompt before its continuation."""

    @abstractmethod
    def token(self, token: Token) -> None:
        """Pass text on."""

    @abstractmethod
    def done(self, generation: Generation) -> None:
        """Tell how an answer ended."""

    @abstractmethod
    def redistributed(self, what: Redistribution, model: Model) -> None:
        """Tell of the loss of a server."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Tell something by the way."""

    @abstractmethod
    def error(self, text: str) -> None:
        """Tell why it ends; the line on standard error comes from elsewhere."""


class Console(Report):
    """Write text to one stream, all else to another.

    Parameters
    ----------
    out, err : file
        For the text; for everything else.

    Attributes
    ----------
    brief : bool
        Say little after an answer.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._bars = Bars(err)
        self.brief = False
        self._on_terminal = out.isatty()
        self._within_line = False

    def fetching(self, name: str, done: int, total: int | None) -> None:
        self._bars.fetching(name, done, total)

    def loading(self, progress: LoadProgress) -> None:
        self._bars.loading(progress)

    def loaded(self, model: Model, n_ctx: int, seconds: float) -> None:
        self._bars.finish()
        about = describe(model.file)
        self.note(f"{about.name}, {size(about.size)}, {count(about.params)} parameters; context {n_ctx} tokens")
        for line in device_lines(held(model)):
            self.note(line)
        self.note(f"loaded in {seconds:.1f} s\n")

    def prompt(self, text: str) -> None:
        self._write(text)

    def token(self, token: Token) -> None:
        self._write(token.text)

    def done(self, generation: Generation) -> None:
        self._write("\n")
        timings = generation.timings
        if self.brief:
            self.note(f"[{timings.n_generated + 1} tokens, {timings.generate_rate:.1f} tokens/s]")
            return
        self.note(f"\nseed {generation.seed}")
        for line in timing_lines(timings):
            self.note(line)

    def redistributed(self, what: Redistribution, model: Model) -> None:
        self._bars.finish()
        # The cause was logged when the server was lost.
        self.note(f"\nwithout {', '.join(what.lost)}:")
        for line in device_lines(placed(model)):
            self.note(line)
        self.note(f"placed anew in {what.seconds:.1f} s; {what.n_tokens} tokens are computed again")

    def note(self, text: str) -> None:
        print(text, file=self._err, flush=True)

    def error(self, text: str) -> None:
        self._bars.finish()
        if self._within_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            # A model may write anything. Into a file or a pipe that goes as it is.
            self._out.write(text.translate(_CONTROLS) if self._on_terminal else text)
            self._out.flush()
            self._within_line = not text.endswith("\n")


def timing_lines(timings: Timings) -> list[str]:
    """Return timings for people."""
    reused = f", {timings.n_reused} of them known from before" if timings.n_reused else ""
    return [
        f"prompt:     {timings.n_prompt} tokens{reused}, {timings.prompt_seconds:.2f} s,"
        f" {timings.prompt_rate:.1f} tokens/s",
        f"generation: {timings.n_generated} tokens after the first, {timings.generate_seconds:.2f} s,"
        f" {timings.generate_rate:.1f} tokens/s",
    ]


class JsonLines(Report):
    """Write a JSON object a line, each with an ``event``."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._percent: dict[str, int] = {}

    def _event(self, name: str, **fields: Any) -> None:
        self._out.write(json.dumps({"event": name, **fields}) + "\n")
        self._out.flush()

    def _is_news(self, name: str, done: int, total: int | None) -> bool:
        """Tell whether a whole percent was reached."""
        percent = 100 * done // total if total else 0
        known = self._percent.get(name)
        self._percent[name] = percent
        return percent != known

    def fetching(self, name: str, done: int, total: int | None) -> None:
        if self._is_news(name, done, total):
            self._event("fetch", file=name, bytes=done, total_bytes=total)

    def loading(self, progress: LoadProgress) -> None:
        device, done, total = progress.device, progress.bytes_done, progress.bytes_total
        if self._is_news(device.name, done, total):
            self._event(
                "load",
                device=device.name,
                endpoint=device.endpoint,
                bytes=done,
                total_bytes=total,
                cached_bytes=progress.bytes_cached,
            )

    def loaded(self, model: Model, n_ctx: int, seconds: float) -> None:
        about = describe(model.file)
        self._event(
            "placement",
            model={"name": about.name, "bytes": about.size, "parameters": about.params},
            context=n_ctx,
            devices=held(model),
            seconds=seconds,
        )

    def prompt(self, text: str) -> None:
        self._event("prompt", text=text)

    def token(self, token: Token) -> None:
        self._event("token", id=token.id, text=token.text)

    def done(self, generation: Generation) -> None:
        self._event(
            "done",
            reason=generation.reason,
            stop_string=generation.stop_string,
            text=generation.text,
            seed=generation.seed,
            timings=timing_fields(generation.timings),
        )

    def redistributed(self, what: Redistribution, model: Model) -> None:
        self._event(
            "redistribution",
            cause=str(what.cause),
            lost=list(what.lost),
            devices=placed(model),
            tokens=what.n_tokens,
            seconds=what.seconds,
        )

    def note(self, text: str) -> None:
        self._event("note", text=text)

    def error(self, text: str) -> None:
        self._event("error", message=text)
