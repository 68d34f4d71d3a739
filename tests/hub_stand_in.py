"""A stand-in for the Hugging Face hub on 127.0.0.1: the part of its protocol that `huggingface_hub` and `datasets` use to fetch, over repositories
of a test's own, with the hub's faults on demand.

Small files are answered by the hub itself, large ones (Git LFS) by a redirect to a second server, as the hub sends its clients to a CDN: what a
client is told of a large file stands in the redirect's headers.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin")  # what the hub keeps in Git LFS
KINDS = {"models": "", "datasets": "datasets/"}  # as the API names them, and what stands in front of a file's address


@dataclass(frozen=True)
class File:
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> str:
        """Git's own name for it."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repository:
    """Files by commit and path, and the commits that branches stand at."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


class Hub:
    """`with Hub() as hub:` it answers at `hub.endpoint`, and `hub.asked` is what it was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str]] = []
        self.strange: list[tuple[str, str]] = []  # requests that no part of the protocol here is for
        self.ranges: list[str] = []
        self.faults: dict[str, int] = {}  # by repository: the status of every answer
        self.cuts: dict[str, list[int]] = {}  # by a large file's SHA-256: after how many bytes its next downloads are cut
        self.lock = threading.Lock()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]  # the hub, and its CDN: another origin
        for server in self.servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on nobody listens at `endpoint`."""
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.servers = []

    def put(self, kind: str, name: str, revision: str, files: dict[str, bytes], branch: str = "main") -> None:
        """A repository's files at a commit, or at the commit that `revision`, where it is a branch, stands at now."""
        repository = self.repositories.setdefault(KINDS[kind] + name, Repository())
        commit = revision if len(revision) == 40 else hashlib.sha1(f"{name} {revision} {sorted(files)}".encode()).hexdigest()
        repository.commits[commit] = {path: File(content) for path, content in files.items()}
        repository.branches[branch if commit == revision else revision] = commit


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()))

    def _answer(self, form: dict[str, list[str]] | None = None) -> None:
        with self.hub.lock:
            self.hub.asked.append((self.command, urlsplit(self.path).path))
        # A branch's name is one part of an address, its slashes quoted: so an address is parted before it is unquoted.
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["cdn", sha256]:
                self._large(sha256)
            case ["api", kind, owner, name, *rest] if kind in KINDS:
                self._api(kind, f"{owner}/{name}", rest, form)
            case ["datasets", owner, name, "resolve", revision, *path]:
                self._file(f"datasets/{owner}/{name}", revision, "/".join(path))
            case [owner, name, "resolve", revision, *path]:
                self._file(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._strange()

    def _strange(self) -> None:
        self.hub.strange.append((self.command, self.path))
        self._send(404, b"")

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, File]] | None:
        """A revision's commit and files; where there is none, or the repository is to fail, that is answered."""
        repository = self.hub.repositories.get(name)
        if status := self.hub.faults.get(name):
            self._error(status, "")
        elif repository is None:  # the hub does not tell whether a repository is private or is not there
            self._error(401, "RepoNotFound", "Invalid username or password.")
        elif (commit := repository.branches.get(revision, revision)) not in repository.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return commit, repository.commits[commit]
        return None

    def _api(self, kind: str, name: str, rest: list[str], form: dict[str, list[str]] | None) -> None:
        asked, revision, *path = rest if len(rest) > 1 else ("revision", "main")
        if (found := self._found(KINDS[kind] + name, revision)) is None:
            return
        commit, files = found
        match asked:
            case "revision":
                self._json({"id": name, "sha": commit, "private": False, "siblings": [{"rfilename": path} for path in files], "tags": []})
            case "tree":
                recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1")
                listed = _tree(files, "/".join(path), recursive)
                self._json(listed) if listed or not path else self._error(404, "EntryNotFound", f"{'/'.join(path)} does not exist", commit)
            case "paths-info" if form is not None:
                everything = {entry["path"]: entry for entry in _tree(files, "", recursive=True)}
                self._json([everything[path] for path in form["paths"] if path in everything])
            case _:
                self._strange()

    def _file(self, name: str, revision: str, path: str) -> None:
        if (found := self._found(name, revision)) is None:
            return
        commit, files = found
        if path not in files:
            self._error(404, "EntryNotFound", "Entry not found", commit)
        elif path.endswith(LARGE):
            file = files[path]
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content)), "X-Repo-Commit": commit}
            self._send(302, b"", {**linked, "Location": f"{self.hub.cdn}/cdn/{file.sha256}"})
        else:
            self._content(files[path].content, {"ETag": f'"{files[path].blob}"', "X-Repo-Commit": commit})

    def _large(self, sha256: str) -> None:
        every = (file for one in self.hub.repositories.values() for files in one.commits.values() for file in files.values())
        content = next(file.content for file in every if file.sha256 == sha256)
        with self.hub.lock:
            cuts = self.hub.cuts.get(sha256) if self.command == "GET" else None
            most = cuts.pop(0) if cuts else None
        self._content(content, {"ETag": f'"{sha256}"'}, most)

    def _content(self, content: bytes, headers: dict[str, str], most: int | None = None) -> None:
        """A file, or the range of it that is asked for."""
        status, headers = 200, {**headers, "Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            self.hub.ranges.append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            status, start, end = 206, int(first), min(int(last or len(content)) + 1, len(content))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            content = content[start:end]
        self._send(status, content, headers, most)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str = "", commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit, "X-Request-Id": "Root=1-stand-in"}
        if status in (429, 500):  # clients try again, as soon as they are told that they may
            headers["Retry-After"] = "0"
        headers = {key: value for key, value in headers.items() if value} | {"Content-Type": "application/json"}
        self._send(status, json.dumps({"error": message or "Internal Error - We're working hard to fix this as soon as possible!"}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, most: int | None = None) -> None:
        """An answer; of one with `most` so many bytes, and then the line is cut."""
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:most])
        if most is not None:
            self.close_connection = True


def _tree(files: dict[str, File], folder: str, recursive: bool) -> list[dict]:
    """The files and folders in a folder, as the hub lists them."""
    listed: dict[str, dict] = {}
    for path, file in files.items():
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                listed[str(parent)] = {"type": "directory", "oid": hashlib.sha1(str(parent).encode()).hexdigest(), "size": 0, "path": str(parent)}
        listed[path] = {"type": "file", "oid": file.blob, "size": len(file.content), "path": path}
        if path.endswith(LARGE):
            listed[path]["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    inside = [entry for path, entry in sorted(listed.items()) if not folder or path.startswith(f"{folder}/")]
    return [entry for entry in inside if recursive or str(PurePosixPath(entry["path"]).parent) == (folder or ".")]
