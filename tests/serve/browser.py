"""A headless Chromium, driven through its DevTools protocol: what the tests of the page see and press.

The protocol is JSON over a web socket; what is needed of it fits here, and a driver of its own would bring a
browser of its own.
"""

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What a key is called, by what it types: (code, number, text).
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "Tab": ("Tab", 9, ""),
    "n": ("KeyN", 78, "n"),
    "r": ("KeyR", 82, "r"),
}
ALT, SHIFT = 1, 8


def find_browser() -> str | None:
    """The program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser, with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        program = find_browser()
        assert program
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        options += [
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "--disable-background-networking",
        ]
        self._open = ExitStack()
        log = self._open.enter_context((profile.parent / "chromium.log").open("wb"))
        self._process = subprocess.Popen(
            [program, *options, "about:blank"], stdout=log, stderr=log, start_new_session=True
        )
        try:
            port = self._port(profile / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
            connection = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
            self._socket = self._open.enter_context(connection)
        except BaseException:
            self._process.kill()
            raise
        self._ids = itertools.count(1)
        self.problems: list[str] = []  # exceptions and console errors of the page
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _port(self, file: Path) -> str:
        for _ in range(300):
            if file.is_file() and (text := file.read_text()):
                return text.splitlines()[0]
            assert self._process.poll() is None, "the browser ended"
            time.sleep(0.1)
        raise AssertionError("the browser opened no port in 30 seconds")

    def close(self) -> None:
        """End the browser."""
        self._open.close()
        self._process.terminate()
        self._process.wait(20)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        id = next(self._ids)
        self._socket.send(json.dumps({"id": id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == id:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(event["params"]["exceptionDetails"]))
        entry = event.get("params", {}).get("entry", {})
        if (
            event.get("method") == "Log.entryAdded"
            and entry["level"] == "error"
            and entry["source"] != "network"
        ):
            self.problems.append(entry["text"])

    def open(self, url: str) -> None:
        """Go to an address, and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, expression: str) -> Any:
        """The value of an expression on the page; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self.js(expression):
                    return
            except AssertionError:  # in the middle of a navigation
                pass
            time.sleep(0.03)
        raise AssertionError(f"not within {seconds} s: {expression}\n{self.js('document.body.innerText')}")

    def type(self, text: str) -> None:
        """Enter text where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key."""
        code, number, text = KEYS[key]
        known = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        text = "" if modifiers & ALT else text
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **known)
        self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def click(self, selector: str) -> None:
        """Click the first element of a selector, where it is on the screen, as a person would."""
        self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'nearest'}})")
        box = self.js(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2, b.width] })()"
        )
        assert box[2] > 0, f"{selector} is not to be seen"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def size(self, width: int, height: int, phone: bool = False) -> None:
        """The size of the window."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def prefer(self, **features: str) -> None:
        """What the reader prefers: prefer(color_scheme="dark")."""
        listed = [{"name": f"prefers-{name.replace('_', '-')}", "value": v} for name, v in features.items()]
        self.call("Emulation.setEmulatedMedia", features=listed)

    def screenshot(self, file: Path) -> None:
        """What is to be seen, as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
