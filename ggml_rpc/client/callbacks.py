"""Telling those who want to know that a connection has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ggml_rpc.errors import RpcError

OnClose = Callable[["RpcError | None"], None]


class CloseCallbacks:
    """Who is told when a connection ends: each once, with the error, or None for a polite close."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._callbacks: list[OnClose] | None = []
        self._error: RpcError | None = None

    def append(self, callback: OnClose) -> None:
        """Register a function. If the connection has ended already it is called at once. It must not raise."""
        with self._lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return
        callback(self._error)

    def remove(self, callback: OnClose) -> None:
        """Forget a function; one that is not registered (any more) is no error."""
        with self._lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def call(self, error: RpcError | None) -> None:
        """Tell all; later calls do nothing."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, None
            if callbacks is not None:
                self._error = error
        for callback in callbacks or ():
            callback(error)
