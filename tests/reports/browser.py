"""Headless Chromium, controlled through its DevTools pipe, without driver and port."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)
SECONDS = 60.0
# Chromium reads commands from descriptor 3 and writes responses to 4.
_LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for number, pipe in enumerate(pipes, 3):
    os.dup2(pipe, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page in a separate browser; its requests and console messages are recorded."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Any]] = {}
        self._events: list[dict[str, Any]] = []
        self._left = b""
        self._session: str | None = None
        self._profile = tempfile.mkdtemp(prefix="robust-chromium-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-background-networking", "--disable-extensions"),
            *("--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank"),
        ]
        pipes = [str(to_browser), str(from_browser)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *pipes, CHROMIUM, *options],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)

    def __enter__(self) -> Browser:
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            session = self.call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = session["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command; returns the browser's response."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self._write, content) :]
        self._until(lambda: number in self._answers, method)
        reply = self._answers.pop(number)
        assert "error" not in reply, f"{method}: {reply['error']}"
        result: dict[str, Any] = reply["result"]
        return result

    def open(self, page: Path, *, width: int = 1300, height: int = 900, dark: bool = False) -> None:
        """Opens the file `page` in a window of the given size."""
        self.resize(width, height)
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.call("Emulation.setEmulatedMedia", media="", features=features)
        self._events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda: any(e["method"] == "Page.loadEventFired" for e in self._events), "load")

    def resize(self, width: int, height: int = 900) -> None:
        """Sets the window size in CSS pixels; below 600 the browser imitates a phone."""
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=mobile,
        )  # fmt: skip

    def media(self, media: str) -> None:
        """Sets the media type, `print` or `screen`."""
        self.call("Emulation.setEmulatedMedia", media=media)

    def scripts(self, *, allowed: bool) -> None:
        """Enables or disables scripts of pages that are opened later."""
        self.call("Emulation.setScriptExecutionDisabled", value=not allowed)

    def js(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression in the page."""
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def key(self, key: str, code: int, text: str = "") -> None:
        """Presses and releases a key."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                windowsVirtualKeyCode=code,
            )  # fmt: skip

    def click(self, selector: str, nth: int = 0) -> None:
        """Clicks the middle of an element with the mouse."""
        point = self.js(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{nth}];"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1],
                button="left", clickCount=1,
            )  # fmt: skip

    def screenshot(self, path: Path, *, whole_page: bool = True) -> Path:
        """Writes a PNG of the page or of the visible part."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole_page)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _until(self, is_done: Any, description: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not is_done():
            seconds_left = deadline - time.monotonic()
            assert seconds_left > 0, (
                f"Chromium did not answer `{description}` within {SECONDS:.0f} s"
            )
            if not select.select([self._read], [], [], min(seconds_left, 1))[0]:
                assert self._process.poll() is None, "Chromium has ended"
                continue
            content = os.read(self._read, 1 << 20)
            assert content, "Chromium has closed its pipe"
            *messages, self._left = (self._left + content).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        self._events.append(message)
        method, parameters = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" or (
            method == "Log.entryAdded" and parameters["entry"]["level"] in ("warning", "error")
        ):
            self.complaints.append(json.dumps(parameters))
