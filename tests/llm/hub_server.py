"""A stand-in for a model hub: the part of its HTTP interface that fetching a file needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Serves repositories from memory.

    Attributes
    ----------
    repos : dict
        Repository -> file name -> bytes.
    tokens : dict
        Repository -> the token it needs.
    requests : list of str
        Method, path and range of each request.
    break_after : int or None
        Bytes after which the next body breaks off.
    status, error_code : int, str
        Answered to everything, if set.
    api : bytes or None
        Answered to every question about a repository, if set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.tokens: dict[str, str] = {}
        self.requests: list[str] = []
        self.break_after: int | None = None
        self.status: int | None = None
        self.error_code: str | None = None
        self.api: bytes | None = None

    @property
    def url(self) -> str:
        """Return what HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self) -> list[str]:
        """Return the requests for files' contents."""
        return [line for line in self.requests if line.startswith("GET") and "/resolve/" in line]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.server
        hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if hub.status is not None:
            self._refuse(hub.status, hub.error_code)
            return
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/?]+)(?:/resolve/main/([^?]+))?(?:\?.*)?", self.path)
        repo = match[1] if match else ""
        if match is None or repo not in hub.repos:
            self._refuse(401, None)  # as the real hub: it does not say which private repositories exist
            return
        if repo in hub.tokens and self.headers.get("Authorization") != f"Bearer {hub.tokens[repo]}":
            self._refuse(403, "GatedRepo")
            return
        if match[2] is None:
            siblings = [{"rfilename": name} for name in hub.repos[repo]]
            raw = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
            self._send(200, {"Content-Type": "application/json"}, raw if hub.api is None else hub.api)
        elif match[2] not in hub.repos[repo]:
            self._refuse(404, "EntryNotFound")
        else:
            self._file(hub.repos[repo][match[2]], body=body)

    def _file(self, raw: bytes, *, body: bool) -> None:
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(raw).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(found[1]) if found else 0
        if found:
            headers["Content-Range"] = f"bytes {begin}-{len(raw) - 1}/{len(raw)}"
        self._send(206 if found else 200, headers, raw[begin:], body=body)

    def _refuse(self, status: int, code: str | None) -> None:
        self._send(status, {"X-Error-Code": code} if code else {}, b"")

    def _send(self, status: int, headers: dict[str, str], raw: bytes, *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        hub = self.server
        if body and hub.break_after is not None and self.command == "GET" and "/resolve/" in self.path:
            raw, hub.break_after = raw[: hub.break_after], None
            self.close_connection = True
        if body:
            self.wfile.write(raw)


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Run a hub on loopback."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
