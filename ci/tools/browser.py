"""A headless Chromium driven through its DevTools protocol: enough to check pages and to use
JupyterLab.

Needs a Chromium or Chrome on the machine (Debian, Ubuntu: apt install chromium) and
websocket-client, which comes with jupyter_server; no driver, no node. `find()` says where the
browser is, `Browser` starts it, a `Page` is one tab.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "no Chromium or Chrome on this machine (Debian, Ubuntu: apt install chromium; or set CHROMIUM)"
)


DIALOG = 10**9  # the answer to a dialog, which no call waits for


class BrowserError(Exception):
    """The browser did not start, or a page did not do what was waited for."""


def find() -> str | None:
    """The browser's command: CHROMIUM, or the first known name on the path."""
    return os.environ.get("CHROMIUM") or next((p for p in map(shutil.which, NAMES) if p), None)


class Page:
    """One tab. Console errors, uncaught exceptions and failed requests are collected in `errors`."""

    def __init__(self, websocket: str) -> None:
        import websocket as client

        self.socket = client.create_connection(websocket, suppress_origin=True, timeout=60)
        self.number, self.errors = 0, []  # type: ignore[var-annotated]
        self.failed: dict[str, str] = {}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setFocusEmulationEnabled", enabled=True
        )  # a page without focus has no current widget

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error']['message']}")
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        kind, p = message.get("method"), message.get("params", {})
        if kind == "Runtime.exceptionThrown":
            details = p["exceptionDetails"]
            self.errors.append(
                details.get("exception", {}).get("description", details["text"]).splitlines()[0]
            )
        elif kind == "Runtime.consoleAPICalled" and p["type"] == "error":
            self.errors.append(
                " ".join(str(a.get("value", a.get("description", ""))) for a in p["args"])
            )
        elif kind == "Page.javascriptDialogOpening":  # a page with unsaved work asks before it goes
            self.socket.send(
                json.dumps(
                    {
                        "id": DIALOG,
                        "method": "Page.handleJavaScriptDialog",
                        "params": {"accept": True},
                    }
                )
            )
        elif kind == "Log.entryAdded" and p["entry"]["level"] == "error":
            self.errors.append(f"{p['entry']['text']} {p['entry'].get('url', '')}".strip())

    def size(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The window in CSS pixels; below 600 as a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def open(self, url: str, seconds: float = 60) -> None:
        self.errors.clear()
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'", seconds)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise BrowserError(
                result["exceptionDetails"].get("exception", {}).get("description", "script failed")
            )
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30, what: str = "") -> Any:
        """Until a JavaScript expression is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := self.run(condition):
                    return value
            except BrowserError:  # the page is just being replaced
                pass
            time.sleep(0.2)
        raise BrowserError(f"not within {seconds:g} s: {what or condition}")

    def press(self, key: str, code: int = 0, modifiers: int = 0) -> None:
        """A key such as "Tab" or "Enter"; modifiers as the protocol has them (2 control, 8 shift)."""
        code = code or {"Tab": 9, "Enter": 13, "Escape": 27}.get(key, 0)
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" and not modifiers else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def write(self, text: str) -> None:
        """Key by key, as a person types; a new line is Enter."""
        for sign in text:
            if sign == "\n":
                self.press("Enter")
            else:
                self.call("Input.dispatchKeyEvent", type="keyDown", key=sign, text=sign)
                self.call("Input.dispatchKeyEvent", type="keyUp", key=sign)

    def picture(self, file: Path, whole: bool = False) -> None:
        """Save what the window shows, or the whole page, as PNG."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self._png(captureBeyondViewport=whole))

    def seen(self, scale: float) -> bytes:
        """The whole page as PNG, so many times its size."""
        room = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return self._png(captureBeyondViewport=True, clip={**room, "scale": scale})

    def _png(self, **options: Any) -> bytes:
        return base64.b64decode(
            self.call("Page.captureScreenshot", format="png", **options)["data"]
        )


@contextmanager
def browser(binary: str | None = None) -> Iterator[Page]:
    """Start a browser with a profile of its own, give its page, end it. BrowserError where it does
    not start."""
    command = binary or find()
    if command is None:
        raise BrowserError(MISSING)
    profile = tempfile.mkdtemp(prefix="browser-")
    flags = [
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-extensions",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        "--force-color-profile=srgb",
    ]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [command, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Page(_first_page(process, Path(profile)))
    finally:
        end_process(process)
        shutil.rmtree(profile, ignore_errors=True)


def end_process(process: subprocess.Popen[bytes], seconds: float = 10) -> None:
    """Ask a process to end, and kill it where it has not after so long."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def _first_page(process: subprocess.Popen[bytes], profile: Path) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            raise BrowserError(
                f"the browser ended with exit code {process.returncode} before it was ready"
            )
        port = profile / "DevToolsActivePort"
        if port.exists() and re.match(r"\d+\n", text := port.read_text()):
            url = f"http://127.0.0.1:{text.split()[0]}/json/list"
            with urllib.request.urlopen(url, timeout=10) as answer:
                pages = [p for p in json.loads(answer.read()) if p["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise BrowserError("the browser was not ready within 60 s")
