"""Headless Chromium, driven through a pipe: no package is needed, and no request leaves the machine."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.halting.process import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What stands for a computer in a phone's network: no `localhost`, so that the browser trusts it no more than that.
HOST = "computer.test"


class Browser:
    """A page of a browser.

    Attributes:
        log: What the browser said that was asked for, as DevTools' events.
    """

    def __init__(self, write: int, read: int):
        self._write, self._read, self._held, self._number = write, os.fdopen(read, "rb"), b"", 0
        self._session: str | None = None
        self.log: list[dict[str, Any]] = []
        # The browser answers before it has a page.
        while not (targets := [own for own in self.call("Target.getTargets")["targetInfos"] if own["type"] == "page"]):
            time.sleep(0.05)
        attached = self.call("Target.attachToTarget", targetId=targets[0]["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Returns what a method of the DevTools protocol answers."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive()
            if found.get("id") == self._number:
                assert "error" not in found, (method, found["error"])
                return dict(found["result"])
            self.log.append(found)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            assert select.select([self._read], [], [], PATIENCE)[0], "the browser says nothing"
            part = os.read(self._read.fileno(), 1 << 16)
            assert part, "the browser has ended"
            self._held += part
        first, _, self._held = self._held.partition(b"\0")
        return dict(json.loads(first))

    def run(self, expression: str) -> Any:
        """Returns the value of a script's expression, once what it promises is there."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Opens a page and waits until it has loaded, before which scripts would still run in the one before."""
        self.log.clear()
        loaded = (self.call("Page.navigate", url=address)["loaderId"], "load")
        while not any((own["params"].get("loaderId"), own["params"].get("name")) == loaded for own in self.log):
            self.log.append(self._receive())

    def wait(self, expression: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, (expression, self.run("document.body.innerText"), self.complaints())
            time.sleep(0.05)

    def complaints(self) -> list[str]:
        """Returns what the page and its workers complained of: exceptions, errors, what its policy refused."""
        found = [json.dumps(own["params"]) for own in self.log if own.get("method") == "Runtime.exceptionThrown"]
        entries = [own["params"]["entry"] for own in self.log if own.get("method") == "Log.entryAdded"]
        return [*found, *(f"{own['text']} {own.get('url', '')}" for own in entries if own["level"] == "error")]


@contextmanager
def serve(folder: Path, headers: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yields the address of a server of a folder, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            asked.append(self.path)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def browse(profile: Path, *options: str) -> Iterator[Browser]:
    """Yields a browser that knows no other host than `HOST`.

    Args:
        profile: An empty folder for it.
        options: Of its command line.
    """
    assert CHROMIUM is not None
    ours, theirs = os.pipe(), os.pipe()
    # Above those that the shell renames.
    read, write = (fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (ours[0], theirs[1]))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
        f"--host-resolver-rules=MAP {HOST} 127.0.0.1, MAP * ~NOTFOUND", f"--user-data-dir={profile}",
        "--disable-background-networking", *options, "about:blank",
    ]  # fmt: skip
    redirect = f'exec "$@" 3<&{read} 4>&{write}'
    process = subprocess.Popen(
        ["bash", "-c", redirect, "browser", *command], pass_fds=(read, write), stderr=subprocess.DEVNULL
    )
    for number in (read, write, ours[0], theirs[1]):
        os.close(number)
    try:
        yield Browser(ours[1], theirs[0])
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(ours[1])
