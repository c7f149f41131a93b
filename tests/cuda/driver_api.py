"""The driver's interface as its headers state it, for the functions of csrc/cuda/driver.h."""

from __future__ import annotations

import re

from tests.cuda.host.build import CSRC

# Function -> version of CUDA -> arguments: p a pointer or handle, i 32 bits, l 64 bits, b a byte. From cudaTypedefs.h
# of CUDA 13.0, whose names of types carry the version in which a form came.
FORMS: dict[str, dict[int, str]] = {
    "cuGetErrorName": {6000: "ip"},
    "cuGetErrorString": {6000: "ip"},
    "cuDeviceGetAttribute": {2000: "pii"},
    "cuDeviceTotalMem": {2000: "pi", 3020: "pi"},
    "cuCtxCreate": {2000: "pii", 3020: "pii", 11040: "ppiii", 12050: "ppii"},
    "cuCtxDestroy": {2000: "p", 4000: "p"},
    "cuDeviceCanAccessPeer": {4000: "pii"},
    "cuCtxEnablePeerAccess": {4000: "pi"},
    "cuCtxSetCurrent": {4000: "p"},
    "cuMemGetInfo": {2000: "pp", 3020: "pp"},
    "cuMemAlloc": {2000: "pi", 3020: "pl"},
    "cuMemFree": {2000: "i", 3020: "l"},
    "cuMemHostAlloc": {2020: "pli"},
    "cuMemHostGetDevicePointer": {2020: "ppi", 3020: "ppi"},
    "cuMemFreeHost": {2000: "p"},
    "cuMemcpyHtoDAsync": {2000: "ipip", 3020: "lplp"},
    "cuMemcpyDtoHAsync": {2000: "piip", 3020: "pllp"},
    "cuMemcpyDtoDAsync": {3000: "iiip", 3020: "lllp"},
    "cuMemcpyPeerAsync": {4000: "lplplp"},
    "cuMemsetD8Async": {3020: "lblp"},
    "cuStreamCreate": {2000: "pi"},
    "cuStreamDestroy": {2000: "p", 4000: "p"},
    "cuStreamSynchronize": {2000: "p"},
    "cuStreamWaitEvent": {3020: "ppi"},
    "cuStreamBeginCapture": {10000: "p", 10010: "pi"},
    "cuStreamEndCapture": {10000: "pp"},
    "cuEventCreate": {2000: "pi"},
    "cuEventDestroy": {2000: "p", 4000: "p"},
    "cuEventRecord": {2000: "pp"},
    "cuEventQuery": {2000: "p"},
    "cuEventSynchronize": {2000: "p"},
    "cuEventElapsedTime": {2000: "ppp", 12080: "ppp"},
    "cuModuleLoadData": {2000: "pp"},
    "cuModuleUnload": {2000: "p"},
    "cuModuleGetFunction": {2000: "ppp"},
    "cuFuncSetAttribute": {9000: "pii"},
    "cuLaunchKernel": {4000: "piiiiiiippp"},
    "cuGraphInstantiate": {10000: "ppppl", 11000: "ppppl"},
    "cuGraphInstantiateWithFlags": {11040: "ppl"},
    "cuGraphExecUpdate": {10020: "pppp", 12000: "ppp"},
    "cuGraphLaunch": {10000: "pp"},
    "cuGraphDestroy": {10000: "p"},
    "cuGraphExecDestroy": {10000: "p"},
}

_KINDS = {
    "int": "i",
    "unsigned": "i",
    "CUresult": "i",
    "CUdevice": "i",
    "size_t": "l",
    "unsigned long long": "l",
    "CUdeviceptr": "l",
    "unsigned char": "b",
}


def form(name: str, version: int) -> str | None:
    """Return the arguments of what a driver gives for a name and a version; None if there is nothing."""
    forms = [number for number in FORMS.get(name, {}) if number <= version]
    return FORMS[name][max(forms)] if forms else None


def declared() -> dict[str, str]:
    """Return function -> arguments as csrc/cuda/driver.h declares them."""
    text = (CSRC / "cuda" / "driver.h").read_text().replace("\\\n", "\n")
    out = {}
    for name, arguments in re.findall(r"^\s*X\((cu\w+),\s*\(([^()]*)\)\)", text, re.MULTILINE):
        types = [argument.strip() for argument in arguments.split(",")]
        out[name] = "".join(_KINDS.get(kind, "p" if kind.endswith("*") or kind[:2] == "CU" else "?") for kind in types)
    return out
