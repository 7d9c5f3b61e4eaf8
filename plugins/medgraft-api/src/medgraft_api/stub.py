"""A server on this machine that speaks Gemini's and OpenAI's wire formats: `python -m medgraft_api.stub --port 8017`.

For tests and rehearsals; it looks at no image. Its answers are a script: (status, body) pairs, `CUT` to close the connection
without an answer, `MALFORMED` for JSON that breaks off; the last is repeated. Without a script every image gets one caption.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT, MALFORMED = "cut", "malformed"
Step = tuple[int, dict[str, Any]] | str


def gemini_says(text: str, finish: str = "STOP") -> tuple[int, dict[str, Any]]:
    """An answer of `generateContent`."""
    content = {"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": finish, "index": 0}
    used = {"promptTokenCount": 300, "candidatesTokenCount": 12, "totalTokenCount": 312}
    return 200, {"candidates": [content], "usageMetadata": used, "modelVersion": "stub-001"}


def openai_says(text: str | None, finish: str = "stop") -> tuple[int, dict[str, Any]]:
    """An answer of `/chat/completions`."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    used = {"prompt_tokens": 300, "completion_tokens": 12, "total_tokens": 312}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "stub-001", "choices": [choice], "usage": used}
    return 200, body


class Stub:
    """The server, answering from `script`; `requests` and `headers` are what it was asked."""

    def __init__(self, script: Iterable[Step] = (), port: int = 0):
        self.script = list(script)
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stub.answer(self)

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request, by the next step of the script."""
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.requests.append((request.path, body))
            self.headers.append(dict(request.headers))
            says = gemini_says if "generateContent" in request.path else openai_says
            given = self.script or [says("no acute finding.")]
            step = given.pop(0) if len(given) > 1 else given[0]
        if step == CUT:
            request.connection.close()
            return
        status, content = (200, None) if isinstance(step, str) else step
        data = b'{"candidates": [{"content"' if content is None else json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def __enter__(self) -> Stub:
        """Serve in the background."""
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8017)
    stub = Stub(port=parser.parse_args().port)
    print(f"GOOGLE_GEMINI_BASE_URL={stub.url} OPENAI_BASE_URL={stub.url}/v1", flush=True)
    stub.server.serve_forever()


if __name__ == "__main__":
    main()
