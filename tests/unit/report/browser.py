"""A headless Chromium over its debugging port: what a person would see of a page.

Small on purpose: open a file, read visible text and boxes, take a picture, and tell what
went to the console or over the network.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

_START_TIMEOUT = 30.0  # seconds
_CALL_TIMEOUT = 20.0


def chromium() -> str | None:
    """Path of a Chromium or Chrome, None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@dataclass
class Page:
    """One opened page. `console` has errors and warnings, `requests` all addresses asked for."""

    browser: Browser
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self) -> str:
        """All text that is displayed; folded parts are not."""
        return str(self.evaluate("document.body?.innerText ?? ''"))

    def evaluate(self, script: str) -> Any:
        """Value of an expression; asked again if the page was just going on to another one."""
        deadline = time.monotonic() + _CALL_TIMEOUT
        while True:
            try:
                result = self.browser.call(
                    "Runtime.evaluate", expression=script, returnByValue=True
                )
                break
            except RuntimeError as error:
                if "navigated" not in str(error) or time.monotonic() > deadline:
                    raise
        if "exceptionDetails" in result:
            raise AssertionError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait_for(self, text: str, timeout: float = 10.0) -> None:
        """Wait until `text` is displayed; AssertionError with what is there instead."""
        deadline = time.monotonic() + timeout
        while text not in self.text():
            if time.monotonic() > deadline:
                raise AssertionError(f"not shown in {timeout} s: {text!r}\n{self.text()[:2000]}")
            self.browser.settle(0.05)

    def click(self, text: str) -> None:
        """Click the innermost element that shows exactly `text`."""
        found = self.evaluate(
            f"(() => {{ const t = {json.dumps(text)};"
            " const all = [...document.querySelectorAll('*')];"
            " const hit = all.filter(e => (e.innerText || '').trim() === t).pop();"
            " if (hit) hit.click(); return Boolean(hit) })()"
        )
        assert found, f"nothing to click on: {text!r}\n{self.text()[:2000]}"

    def screenshot(self, path: Path) -> None:
        data = self.browser.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


class Browser:
    """Start and end one Chromium; its profile lives in `directory`."""

    def __init__(self, executable: str, directory: Path) -> None:
        self._runner = asyncio.Runner()
        self._ids = 0
        self._page: Page | None = None
        self._process = subprocess.Popen(
            [
                executable,
                "--headless",
                "--no-sandbox",  # tests may run as root, the pages are our own
                "--disable-gpu",
                "--disable-crash-reporter",
                "--disable-component-update",
                "--disable-background-networking",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={directory}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(directory)},
            start_new_session=True,
        )
        try:
            self._runner.run(self._connect(self._port(directory / "DevToolsActivePort")))
        except BaseException:
            self.close()
            raise

    def _port(self, file: Path) -> int:
        """The debugging port, which Chromium writes down once it listens."""
        deadline = time.monotonic() + _START_TIMEOUT
        while not file.exists() or not file.read_text().strip():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"chromium did not start within {_START_TIMEOUT} s")
            time.sleep(0.05)
        return int(file.read_text().split()[0])

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            targets = await answer.json()
        page = next(target for target in targets if target["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)

    def open(
        self,
        path: Path,
        *,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        media: str = "screen",
    ) -> Page:
        """Load a local file and wait until it is complete; `media` is screen or print."""
        self._page = Page(self)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = "dark" if dark else "light"
        self.call(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + _CALL_TIMEOUT
        while self._page.evaluate("document.readyState") != "complete":
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} did not load within {_CALL_TIMEOUT} s")
            self.settle(0.02)
        self.settle(0.1)
        return self._page

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One DevTools command; events that come meanwhile are noted in the page."""
        return self._runner.run(self._call(method, params))

    def settle(self, seconds: float) -> None:
        """Let time pass and note the events."""
        self._runner.run(self._settle(seconds))

    async def _settle(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            try:
                self._note(await asyncio.wait_for(self._socket.receive_json(), left))
            except TimeoutError:
                return

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._ids += 1
        await self._socket.send_json({"id": self._ids, "method": method, "params": params})
        async with asyncio.timeout(_CALL_TIMEOUT):
            while True:
                message = await self._socket.receive_json()
                if message.get("id") != self._ids:
                    self._note(message)
                elif "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                else:
                    return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        if self._page is None:
            return
        method, params = message.get("method"), message.get("params", {})
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self._page.console.append(params["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self._page.console.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self._page.console.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self._page.requests.append(params["request"]["url"])

    def close(self) -> None:
        """End the browser and all its helpers, and see that they are gone."""
        # Its profile is thrown away, so there is nothing that it would have to save.
        group = self._process.pid
        os.killpg(group, signal.SIGKILL)
        self._process.wait(timeout=5)
        if hasattr(self, "_session"):
            self._runner.run(self._session.close())
        self._runner.close()
        deadline = time.monotonic() + 5
        while _group_alive(group):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process group {group} of chromium does not end")
            time.sleep(0.02)


def _group_alive(group: int) -> bool:
    """Whether the process group has a member that runs; the dead that init has not yet
    collected do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it ended meanwhile
            continue
        if int(member_of) == group and state != "Z":
            return True
    return False
