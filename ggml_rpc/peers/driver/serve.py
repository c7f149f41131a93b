"""Run the stock RPC server of a folder of ggml libraries, with the flags of the stock program."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``serve``."""
    parser.add_argument("-H", "--host", default="127.0.0.1")
    parser.add_argument("-p", "--port", type=int, default=50052, help="0 picks a free port")
    parser.add_argument("-t", "--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("-d", "--device", default="CPU", help="names, separated by commas")
    parser.add_argument("-c", "--cache", action="store_true", help="keep large tensors in $LLAMA_CACHE/rpc")
    parser.add_argument("--libraries", type=Path, help="folder of libggml*.so; default: the stock wheel's")


def run(args: argparse.Namespace, emit_fd: int) -> int:
    """Serve until the process is ended; print the endpoint once the server listens.

    Parameters
    ----------
    args : argparse.Namespace
        Options of `add_arguments`.
    emit_fd : int
        Descriptor to print to; the library's own output goes to standard error.
    """
    folder = args.libraries or _wheel_folder()
    for name in ("libggml-base.so", "libggml-cpu.so", "libggml-rpc.so", "libggml.so"):
        found = sorted(folder.glob(f"{name}*"))
        if not found:
            print(f"no {name} in {folder}", file=sys.stderr)
            return 1
        library = ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)
        if name == "libggml-rpc.so":
            rpc = library
    by_name = library.ggml_backend_dev_by_name
    by_name.restype, by_name.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    names = args.device.split(",")
    devices = [by_name(name.encode()) for name in names]
    if None in devices:
        print(f"unknown device {names[devices.index(None)]!r}", file=sys.stderr)
        return 1
    cache = None
    if args.cache:
        path = Path(os.environ.get("LLAMA_CACHE") or Path.home() / ".cache" / "llama.cpp") / "rpc"
        path.mkdir(parents=True, exist_ok=True)
        cache = f"{path}/".encode()
    port = args.port or _free_port(args.host)
    threading.Thread(target=_announce, args=(args.host, port, emit_fd), daemon=True).start()
    start = rpc.ggml_backend_rpc_start_server
    start.restype = None
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would wait for a call that never returns
    array = (ctypes.c_void_p * len(devices))(*devices)
    start(f"{args.host}:{port}".encode(), cache, args.threads, len(devices), array)
    return 1  # the call comes back only if it could not listen


def _wheel_folder() -> Path:
    import llama_cpp_py_sync  # noqa: PLC0415 - a native server runs without the wheel

    return Path(llama_cpp_py_sync.__file__).parent


def _free_port(host: str) -> int:
    """Return a port that is free now; the stock server cannot report one that the system picks."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _announce(host: str, port: int, emit_fd: int) -> None:
    """Print the endpoint as soon as a connection succeeds."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                break
        time.sleep(0.02)
    os.write(emit_fd, f"Starting stock RPC server\n  endpoint       : {host}:{port}\n".encode())
