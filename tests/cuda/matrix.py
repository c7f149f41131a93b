"""Compile every kernel for every architecture; write registers, spills and static shared memory: `make cuda-matrix`."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from ggml_rpc.devices.cuda import registry
from tests.cuda.host.build import ROOT
from tests.cuda.nvrtc import CompileError, Usage, compile_file, library, version

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
TARGET = ROOT / "build" / "cuda-matrix.json"


def files() -> dict[str, list[str]]:
    """Return the registry's expressions by file."""
    out: dict[str, list[str]] = defaultdict(list)
    for file, expression in registry():
        out[file].append(expression)
    return dict(out)


def _one(job: tuple[str, list[str], int]) -> dict[str, Usage] | str:
    try:
        return compile_file(*job)
    except CompileError as error:
        return str(error)


def main() -> int:
    """Print what spills and what fails; returns how many files failed."""
    if library() is None:
        sys.exit("nvidia-cuda-nvrtc is not installed: pip install nvidia-cuda-nvrtc")
    jobs = [(file, names, arch) for file, names in files().items() for arch in ARCHITECTURES]
    table: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    failures = []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for (file, names, arch), result in zip(jobs, pool.map(_one, jobs), strict=True):
            if isinstance(result, str):
                failures.append(result)
                continue
            spilling = sum(usage.spill_bytes > 0 for usage in result.values())
            most = max(usage.registers for usage in result.values())
            print(
                f"{file:20} sm_{arch:<4} {len(names):4} kernels, at most {most:3} registers, {spilling} spill",
                flush=True,
            )
            for name, usage in result.items():
                table[f"{file} {name}"][f"sm_{arch}"] = asdict(usage)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps({"nvrtc": version(), "kernels": table}, indent=1))
    for kernel, usages in table.items():
        for arch, usage in usages.items():
            if usage["spill_bytes"]:
                print(f"spills {usage['spill_bytes']:5} bytes on {arch}: {kernel}")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{TARGET.relative_to(ROOT)}: {len(table)} kernels for {len(ARCHITECTURES)} architectures")
    return len(failures)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
