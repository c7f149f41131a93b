"""Every Python example of the README and the documentation runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ggml_rpc.peers import find_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = "gemma-3-270m-q4_k_m.gguf"
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if "```python" in path.read_text()
)


def examples(page: str) -> str:
    """Return the Python of a page; its blocks follow one another in one program, at their lines."""
    text = (ROOT / page).read_text()
    program = ["\n"] * len(text.splitlines())
    for block in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        first = text[: block.start(1)].count("\n")
        for i, line in enumerate(block[1].splitlines(keepends=True)):
            program[first + i] = line
    return "".join(program)


def test_there_are_pages() -> None:
    assert {"README.md", "docs/tensors.md", "docs/models.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = examples(page)
    if MODEL in source:
        model = find_model()
        if model is None:
            pytest.skip("no model here: `make peers` fetches it")
        (tmp_path / MODEL).symlink_to(model)
    # A reader's server blocks; a test's has to come back.
    source = source.replace("server.serve_forever()", "server.close()")
    monkeypatch.chdir(tmp_path)
    exec(compile(source, page, "exec"), {"__name__": "__main__"})  # noqa: S102
    assert "Traceback" not in capsys.readouterr().err
