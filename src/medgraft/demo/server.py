"""Serves the page: at one address, without telemetry, and with nothing left on the disk."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any, Self

from medgraft.demo.models import DemoModel
from medgraft.errors import ConfigError

_logger = logging.getLogger(__name__)
_HEADERS = {
    # a browser gets nothing from another server, whatever Gradio's files name, and other pages cannot frame this one
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_TELEMETRY": "1"}


def require_gradio() -> None:
    """ConfigError if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("medgraft demo needs Gradio, which is not installed. To install it: pip install 'medgraft[demo]'")


class _PrivateHeaders:
    """ASGI middleware that adds `_HEADERS` to every response."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((n.encode(), v.encode()) for n, v in _HEADERS.items())]
            await send(message)

        await self._app(scope, receive, with_headers)


class Address:
    """A bound socket at `host` and `port`, 0 for a free one; ConfigError if it cannot be bound."""

    def __init__(self, host: str, port: int):
        self._host = host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if not 0 <= port < 65536:
            raise ConfigError(f"--port {port} is no port; they go from 1 to 65535, and 0 takes a free one.")
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigError(
                f"--host {host} --port {port} cannot be used: {error.strerror or error}. --port 0 takes a free port."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    @property
    def url(self) -> str:
        """The page's URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._socket.getsockname()[1]}/"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        return ipaddress.ip_address(self._socket.getsockname()[0]).is_loopback

    def serve(self, models: Sequence[DemoModel]) -> None:
        """Serve the page of `models` until Ctrl-C or SIGTERM. What is uploaded is deleted when it was read."""
        with TemporaryDirectory(prefix="medgraft-demo-") as folder:
            os.environ.update(_QUIET, GRADIO_TEMP_DIR=folder)  # Gradio reads them when it is imported
            logging.getLogger("httpx").setLevel(logging.WARNING)
            for name in ("SIGTERM", "SIGHUP"):
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.default_int_handler)  # so that the folder is removed
            with suppress(KeyboardInterrupt):
                self._run(models)

    def _run(self, models: Sequence[DemoModel]) -> None:
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from medgraft.demo.page import CSS, demo_page, theme

        privacy = "Images stay on this machine, in its memory; none is kept."
        if not self.is_loopback:
            privacy = f"Images travel over the network to {self._host}, unencrypted; none is kept there."
            _logger.warning("--host %s: whoever reaches it can use the page, and images travel over the network.", self._host)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(_PrivateHeaders)
        if self.is_loopback:  # another site's page cannot reach it by a name of its own
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", self._host])
        gr.mount_gradio_app(
            app, demo_page(models, privacy), path="/", server_name=self._host, theme=theme(), css=CSS, footer_links=[],
            run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, max_file_size="1gb",
        )  # fmt: skip

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # open tabs are cut off, which is no error
                await super().shutdown(sockets)

        print(f"The page is at {self.url}. Ctrl-C ends it.", flush=True)
        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[self._socket])
