"""A server on this machine that speaks as much of the Hugging Face hub as pushing and pulling models needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

WRITES, READS = "hf_writes", "hf_reads"  # the tokens that it knows


@dataclass
class Repo:
    """A repository: the files of each commit, and the commit of each branch."""

    private: bool = True
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "initial commit") -> str:
        """Make `files` the content of `branch`; returns the commit."""
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        """The commit of a branch or of itself."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Hub(ThreadingHTTPServer):
    """The repositories by name, and what tests change: `sizes` that are announced instead of the true ones, `status` and
    `code` of every answer. `requests` lists what was asked, `uploaded` the objects by SHA-256."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.sizes: dict[str, int] = {}
        self.status: int | None = None
        self.code = ""
        self.requests: list[str] = []
        self.uploaded: dict[str, bytes] = {}


@contextmanager
def hub_server():
    """A running Hub."""
    hub = Hub()
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if self.server.status:
            return self._error(self.server.status, self.server.code)
        if token not in (None, WRITES, READS):
            return self._error(401, "", "Invalid credentials in Authorization header")
        if self.command == "POST" and token != WRITES:  # a PUT is to the storage, whose address was given to who may write
            return self._error(403 if token else 401, "", "You don't have the rights")
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                parts = found.groupdict()
                if "repo" in parts:
                    repo = self.server.repos.get(parts["repo"])
                    if repo is None or (repo.private and token is None):
                        return self._error(404 if token else 401, "RepoNotFound")
                    parts["repo"] = repo
                return answer(self, **parts)
        return self._error(404, "", f"no route for {path}")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), Content_Type="application/json")

    def _error(self, status: int, code: str, message: str = "") -> None:
        self._send(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def _files(self, repo: Repo, commit: str) -> list[dict[str, object]]:
        found = []
        for name, content in repo.commits[commit].items():
            size = self.server.sizes.get(name, len(content))
            lfs = {"oid": _sha256(content), "sha256": _sha256(content), "size": size, "pointerSize": 134}
            found.append({"path": name, "rfilename": name, "size": size, "oid": _blob(content), "type": "file"})
            found[-1] |= {"lfs": lfs} if _is_large(name) else {}
        return found

    def info(self, repo: Repo, revision: str | None) -> None:
        commit = repo.find(revision or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound")
        return self._json({"id": "", "sha": commit, "private": repo.private, "siblings": self._files(repo, commit)})

    def tree(self, repo: Repo, revision: str) -> None:
        self._json(self._files(repo, repo.find(revision)))

    def resolve(self, repo: Repo, revision: str, file: str) -> None:
        commit = repo.find(revision)
        content = repo.commits[commit].get(file)
        if content is None:
            return self._error(404, "EntryNotFound")
        etag = _sha256(content) if _is_large(file) else _blob(content)
        linked = {"X_Linked_Size": str(len(content)), "X_Linked_Etag": f'"{etag}"'} if _is_large(file) else {}
        return self._send(200, content, X_Repo_Commit=commit, ETag=f'"{etag}"', **linked)

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repos:
            return self._error(409, "", "You already created this model repo")
        self.server.repos[name] = repo = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit({".gitattributes": b"*.safetensors filter=lfs"})
        return self._json({"url": f"{self.server.url}/{name}"})

    def branch(self, repo: Repo, branch: str) -> None:
        if branch in repo.branches:
            return self._error(409, "", "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        return self._json({})

    def card(self) -> None:
        base = re.search(r"^base_model: (.*)$", json.loads(self.body)["content"], re.MULTILINE)
        if base and not re.fullmatch(r"[\w.-]+/[\w.-]+", base[1]):
            return self._send(400, json.dumps({"errors": [{"message": f"base_model {base[1]} is not valid"}]}).encode())
        return self._json({"errors": [], "warnings": []})

    def preupload(self, repo: Repo, revision: str) -> None:
        asked = [file["path"] for file in json.loads(self.body)["files"]]
        modes = [{"uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False, "path": path} for path in asked]
        self._json({"files": modes})

    def batch(self, repo: Repo) -> None:
        objects = json.loads(self.body)["objects"]
        for found in objects:
            if found["oid"] not in self.server.uploaded:
                found["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{found['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        if _sha256(self.body) != oid:
            return self._error(422, "", "wrong digest")
        self.server.uploaded[oid] = self.body
        return self._send(200, b"")

    def commit(self, repo: Repo, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, files = lines[0]["value"], dict(repo.commits[repo.branches[revision]])
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            return self._error(412, "", "A commit has happened since")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, revision, header["summary"])
        name = "/".join(self.path.split("/")[3:5])
        return self._json({"commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}", "success": True})


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_ROUTES = (
    (f"GET /api/models/{_REPO}(/revision/(?P<revision>.+))?", _Handler.info),
    (f"GET /api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (f"(HEAD|GET) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.card),
    (f"POST /api/models/{_REPO}/branch/(?P<branch>.+)", _Handler.branch),
    (f"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (f"POST /api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(?P<oid>\w+)", _Handler.put),
)


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
