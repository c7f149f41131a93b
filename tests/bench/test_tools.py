"""The parts of the measurements that can be wrong without being slow."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from bench import floors, machine, opponents, run, scaling, store
from bench.clients import Client
from bench.make_gguf import SHAPES, write_random
from bench.models import decode_bytes
from ggml_rpc.devices.cpu import levels
from ggml_rpc.llm.gguf_file import GgufFile
from tests.bench.records import RUN, SCALING

ECHO = """
import json, sys
for line in sys.stdin:
    if line.startswith("clear"):
        print("gone", file=sys.stderr)
        sys.exit(3)
    print(json.dumps({"event": line.split()[0], "seconds": len(line.split())}), flush=True)
"""


def test_a_client_is_asked_a_line_at_a_time() -> None:
    with Client([sys.executable, "-c", ECHO]) as client:
        assert client.open() == 1
        assert client.decode(512) == 3
        assert client.fill(1000, 512) == 6  # 512 once, 488 once
        assert client.fill(1024, 512) == 3
        assert client.fill(0, 512) == 0
        with pytest.raises(RuntimeError, match="status 3 at 'clear'"):
            client.clear()
        with pytest.raises(RuntimeError, match="status 3"):
            client.load()


def test_decode_reads_all_weights_but_the_embeddings(tmp_path: Path) -> None:
    write_random(tmp_path / "tiny.gguf", SHAPES["tiny"], "Q8_0")
    with GgufFile.open(tmp_path / "tiny.gguf") as file:
        sizes = {name: tensor.nbytes for name, tensor in file.tensors.items()}
    assert decode_bytes(tmp_path / "tiny.gguf") == sum(sizes.values()) - sizes["token_embd.weight"]
    assert sizes["token_embd.weight"] == 512 * 256 // 32 * 34


def test_floors_of_what_the_machine_has_are_positive_and_others_zero() -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    memory, nonsense, int8 = floors.measure([("memory", "any", 1), ("int8", "mmx", 1), ("int8", "avx2", 1)])
    assert memory > 0
    assert nonsense == 0
    assert (int8 > 0) == ("avx2" in machine.describe()["isa"])


def test_without_a_compiler_the_memory_is_still_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(machine, "ARRAY_BYTES", 1 << 20)
    memory, int8 = floors.measure([("memory", "any", 1), ("int8", "avx2", 1)])
    assert memory > 0
    assert int8 == 0


def test_commands_are_recorded_without_folders_of_this_machine() -> None:
    line = opponents.plain([sys.executable, f"{opponents.ROOT}/bench/run.py", f"{Path.home()}/.cache/x", "a b"])
    assert line == "python3 ./bench/run.py ~/.cache/x 'a b'"


def test_a_result_is_named_by_its_run() -> None:
    assert store.default_path(RUN) == store.RESULTS / "2026-11-20-test-cpu-avx512-native.json"
    assert store.default_path(SCALING) == store.RESULTS / "2026-11-20-test-cpu-avx512-scaling.json"


def test_an_unknown_level_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["tiny-Q4_0", "--isa", "mmx"]) == 1
    assert f"no level mmx; it has {', '.join(levels())}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nonsense"], ["--batches", "0"], ["--batches", "1024"], ["--contexts", "-1"]])
def test_scaling_refuses_what_makes_no_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit) as status:
        scaling.main(words)
    assert status.value.code == 2


def test_a_curve_keeps_holes() -> None:
    speeds: dict[str, dict[str, scaling.Points]] = {}
    scaling.add(speeds, {"prefill": {"ours": [], "stock": []}}, "context 0")
    scaling.add(speeds, {"prefill": {"ours": [3.0, 1.0, 2.0], "stock": [1.0, 1.0, 1.0]}}, "context 512")
    assert speeds["prefill"]["ours"] == {"median": [None, 2.0], "low": [None, 1.0], "high": [None, 3.0]}
