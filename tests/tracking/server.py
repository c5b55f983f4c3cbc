"""Enough of a W&B server for a client to start, send and finish a run; it remembers what it was told."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

KEY = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Received:
    """What a server has of one run."""

    variables: dict[str, Any] = field(default_factory=dict)
    """Of the first request for it: name, project, groupName, jobType, sweep, ..."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By the line's number, as the client counts them."""
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Server:
    """``refuse``: the status that every request is answered with, in place of an answer."""

    refuse: int | None = None
    runs: dict[str, Received] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    """Type and name of those that were announced."""
    url: str = ""

    def run(self, id: str) -> Received:
        return self.runs.setdefault(id, Received())

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        if "upsertBucket" in query:
            found = self.run(variables["name"])
            found.variables = {**variables, **{key: value for key, value in found.variables.items() if value}}
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": variables["name"], "displayName": variables.get("displayName")}
            bucket |= {"description": "", "config": None, "sweepName": variables.get("sweep"), "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            urls = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": urls}}
        if "viewer" in query:
            me = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": me}
        if "createArtifact(" in query:
            asked = variables["input"]
            self.artifacts.append(f"{asked['artifactTypeName']}/{asked['artifactCollectionName']}")
            # COMMITTED: it has these bytes already, so nothing is uploaded.
            sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        return {"project": None}

    def stream(self, path: str, body: dict[str, Any]) -> None:
        """Lines of a run's history and its summary: POST /files/<entity>/<project>/<run>/file_stream."""
        found = self.run(path.split("/")[-2])
        for name, part in (body.get("files") or {}).items():
            for number, line in enumerate(part["content"], part["offset"]):
                if name == "wandb-history.jsonl":
                    found.history[number] = json.loads(line)
                elif name == "wandb-summary.json":
                    found.summary |= json.loads(line)


@contextlib.contextmanager
def wandb_server(
    monkeypatch: pytest.MonkeyPatch, refuse: int | None = None
) -> Iterator[tuple[Server, ThreadingHTTPServer]]:
    """A server that the environment names, with a key; also the HTTP server, which a test may shut down."""
    server = Server(refuse)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            path, answer = urlsplit(self.path).path, {}
            if server.refuse is None and path.endswith("graphql"):
                asked = json.loads(body)
                answer = {"data": server.answer(asked["query"], asked.get("variables") or {})}
            elif server.refuse is None and path.endswith("file_stream"):
                server.stream(path, json.loads(body))
            data = json.dumps(answer).encode()
            self.send_response(server.refuse or 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up when they are done

    http = Quiet(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    try:
        yield server, http
    finally:
        http.shutdown()
        http.server_close()
