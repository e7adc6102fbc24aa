"""A headless Chromium driven over DevTools' pipe, for the tests of the page: nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds for anything: far more than a slow machine needs


def find() -> str | None:
    """The path of a Chromium or Chrome, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One page in one browser. `troubles`: what went wrong in it: exceptions, refused requests, broken policies.
    `asked`: what the page asked to be confirmed; it is told yes.
    """

    def __init__(self, path: str, profile: Path) -> None:
        self.troubles: list[str] = []
        self.asked: list[str] = []
        self._count, self._rest, self._session = 0, b"", ""
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        ends = (to_read, to_write)
        lines = f'"$@" 3<&{ends[0]} 4>&{ends[1]}'  # DevTools' pipe is the descriptors 3 and 4
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {lines}", "bash", path, *_flags(profile)],
            pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in ends:
            os.close(end)
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")
        self.size(1280, 800)

    def close(self) -> None:
        self._session = ""
        try:
            self._ask("Browser.close")
        except (OSError, RuntimeError):
            self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._read)
        os.close(self._write)

    # what a person does

    def go(self, address: str) -> None:
        self._ask("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.protocol !== 'about:'")

    def reload(self) -> None:
        self.run("window.old = true")
        self._ask("Page.reload")
        self.wait("!window.old && document.readyState === 'complete'")

    def size(self, width: int, height: int, dark: bool = False) -> None:
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def click(self, element: str) -> None:
        """`element`: an expression for it. It must be visible, with nothing before it."""
        self.wait(f"({element})?.checkVisibility()")
        middle = (
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'nearest'}});"
            "const r = e.getBoundingClientRect(); const at = [r.x + r.width / 2, r.y + r.height / 2];"
            "const hit = document.elementFromPoint(...at); return [...at, e === hit || e.contains(hit)]; })()"
        )
        x, y, hit = self.run(middle)
        assert hit, f"{element} is covered by something else"
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self._ask("Input.insertText", text=text)

    def enter(self, shift: bool = False) -> None:
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 8 if shift else 0}
        self._ask("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **key)

    # what a person sees

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Until it is true; what it is then."""
        end = time.monotonic() + PATIENCE
        while not (found := self.run(expression)):
            if time.monotonic() > end:
                raise RuntimeError(f"never came true: {expression}; troubles: {self.troubles}")
            time.sleep(0.02)
        return found

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    # the pipe: JSON objects with a zero byte behind each

    def _ask(self, method: str, **given: Any) -> dict[str, Any]:
        number = self._send(method, **given)
        while (answer := self._next()).get("id") != number:
            self._hear(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def _send(self, method: str, **given: Any) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._count

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise RuntimeError("the browser says nothing")
            if not (more := os.read(self._read, 1 << 20)):
                raise RuntimeError("the browser ended")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def _hear(self, event: dict[str, Any]) -> None:
        method, given = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.troubles.append(str(given["exceptionDetails"].get("exception", given)))
        elif method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.troubles.append(f"{given['entry']['text']} {given['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.asked.append(given["message"])
            self._send("Page.handleJavaScriptDialog", accept=True)


def _flags(profile: Path) -> list[str]:
    flags = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
    flags += ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions"]
    return flags + ["--no-sandbox"] * (os.geteuid() == 0)  # Chromium's sandbox refuses root
