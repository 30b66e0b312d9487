"""A hub on loopback that speaks what the Hugging Face library asks of one, and fails when told to.

Large files are served by a second address, as the real one's are, which must not see the token.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "acme/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hold:
    """A response that stops after so many bytes, until it may go on."""

    after: int
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@dataclass
class Seen:
    """One request for a file."""

    path: str
    start: int
    sent: int = 0
    token: str = ""


@dataclass
class Hub:
    """What is served, and what was asked for."""

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)
    token: str = ""
    """Whoever does not show it is refused."""
    status: list[int] = field(default_factory=list)
    """Answers to the next requests, whatever they are for."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """The next responses for a file end after so many bytes."""
    holds: dict[str, Hold] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    """Other bytes than those that are listed."""
    ranges: bool = True
    seen: list[Seen] = field(default_factory=list)
    cdn_tokens: list[str] = field(default_factory=list)
    endpoint: str = ""
    cdn: str = ""

    def info(self) -> dict[str, Any]:
        """What the API says of the repository."""
        siblings = []
        for path, data in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            told: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
            if path in self.large:
                digest = hashlib.sha256(data).hexdigest()
                told["blobId"] = "f" * 40
                told["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(told)
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}

    def sent(self, path: str) -> int:
        """Bytes sent of a file, all responses together."""
        return sum(seen.sent for seen in self.seen if seen.path == path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""

    def do_GET(self) -> None:
        """Any request."""
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path.startswith("/cdn/"):
            hub.cdn_tokens.append(token)
            return self._file(path.removeprefix("/cdn/"), token)
        if hub.status:
            return self._say(hub.status.pop(0))
        if token != hub.token:
            # As the hub: who may not see it is told that it is not there.
            return self._say(401, {"X-Error-Code": "RepoNotFound"} if not token else {})
        api = f"/api/models/{REPOSITORY}/revision/{COMMIT}"
        if path == api:
            return self._say(200, body=json.dumps(hub.info()).encode())
        if path.startswith("/api/models/"):
            known = path.startswith(f"/api/models/{REPOSITORY}/")
            return self._say(404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        name = path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")
        if name not in hub.files:
            return self._say(404, {"X-Error-Code": "EntryNotFound"})
        if name in hub.large:
            return self._say(302, {"Location": f"{hub.cdn}/cdn/{name}"})
        return self._file(name, token)

    def _say(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"no") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str, token: str) -> None:
        hub = self.hub
        data = hub.served.get(name, hub.files[name])
        said = self.headers.get("Range", "") if hub.ranges else ""
        first, _, last = said.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last or len(data) - 1) + 1
        seen = Seen(name, start, token=token)
        hub.seen.append(seen)
        body = data[start:end]
        self.send_response(206 if said else 200)
        if said:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self._send(name, body, seen)

    def _send(self, name: str, body: bytes, seen: Seen) -> None:
        cuts, hold = self.hub.cuts.get(name), self.hub.holds.get(name)
        most = cuts.pop(0) if cuts else len(body)
        if hold and hold.after < len(body):
            seen.sent += self._write(body[: hold.after])
            hold.reached.set()
            hold.go_on.wait(60)
            seen.sent += self._write(body[hold.after :])
        else:
            seen.sent += self._write(body[:most])
        self.close_connection = most < len(body)

    def _write(self, data: bytes) -> int:
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True
            return 0
        return len(data)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve it until the end of the block."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        server.daemon_threads = True
        server.handle_error = lambda *args: None
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    hub.endpoint, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for hold in hub.holds.values():
            hold.go_on.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
