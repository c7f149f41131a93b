"""What a stock llama.cpp says about vocabularies: run with the peer's Python and the driver's folder, prints JSON.

Reads a list of jobs ``{"model": file, "pre": name or null, "texts": [...], "pieces": bool}`` from standard input and
answers a line a job. With ``pre`` the file's name of a pre-tokenizer, which must be ``gpt-2``, is replaced by that one.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])
from llama import Log, Model, ffi, lib


def tokenize(model: Model, text: str, special: bool) -> list[int]:
    raw = text.encode()
    buffer = ffi.new("llama_token[]", len(raw) + 8)
    count = lib.llama_tokenize(model.vocab, raw, len(raw), buffer, len(buffer), special, special)
    assert count >= 0
    return list(buffer[0:count])


def pieces(model: Model, special: bool) -> list[str]:
    buffer = ffi.new("char[]", 4096)
    out = []
    for token in range(model.n_vocab):
        count = lib.llama_token_to_piece(model.vocab, token, buffer, len(buffer), 0, special)
        assert count >= 0
        out.append(bytes(ffi.buffer(buffer, count)).hex())
    return out


def answer(job: dict[str, Any], path: str) -> dict[str, Any]:
    model = Model(path, vocab_only=True)
    out: dict[str, Any] = {
        "plain": [tokenize(model, text, False) for text in job["texts"]],
        "special": [tokenize(model, text, True) for text in job["texts"]],
        "ends": [token for token in range(model.n_vocab) if lib.llama_vocab_is_eog(model.vocab, token)],
        "bos": lib.llama_vocab_bos(model.vocab),
        "eos": lib.llama_vocab_eos(model.vocab),
        "add": [bool(lib.llama_vocab_get_add_bos(model.vocab)), bool(lib.llama_vocab_get_add_eos(model.vocab))],
    }
    if job.get("pieces"):
        out["pieces"] = pieces(model, False)
        out["names"] = pieces(model, True)
    model.close()
    return out


def with_pre(data: bytes, name: str) -> bytes:
    """Replace the pre-tokenizer's name; a file without tensors has nothing that must keep its place."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = text("tokenizer.ggml.pre") + struct.pack("<I", 8)
    before, found, after = data.partition(head + text("gpt-2"))
    assert found
    return before + head + text(name) + after


log = Log()  # keeps the library quiet
for job in json.load(sys.stdin):
    if job.get("pre") is None:
        result = answer(job, job["model"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocabulary.gguf"
            path.write_bytes(with_pre(Path(job["model"]).read_bytes(), job["pre"]))
            try:
                result = answer(job, str(path))
            except RuntimeError as error:
                result = {"error": str(error)}
    print(json.dumps(result), flush=True)
