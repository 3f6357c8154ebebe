"""A Chromium that tests ask: one process for many pages, over its debugging pipe, in real time.

https://chromedevtools.github.io/devtools-protocol/: a message is JSON and ends with a zero byte.
"""

import base64
import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-pipe"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--allow-file-access-from-files",  # a test looks into a page that it shows in a frame
)
# Chromium reads from descriptor 3 and writes to 4, whatever the pipes have here.
_START = """import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])"""
_PATIENCE_S = 60.0  # a busy machine may take long over a page


class Browser:
    """One browser; ``folder`` keeps its profile and the pages."""

    def __init__(self, folder):
        self._folder, self._numbers = folder, iter(range(1, 1 << 30))
        self._results, self._events, self._rest = {}, {}, b""
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        pipes = (read_commands, write_answers)
        command = [BROWSER, *_FLAGS, f"--user-data-dir={folder / 'profile'}"]
        starter = [sys.executable, "-c", _START, *map(str, pipes), *command]
        self._process = subprocess.Popen(starter, pass_fds=pipes, stderr=subprocess.DEVNULL)
        os.close(read_commands)
        os.close(write_answers)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)

    def close(self):
        self.call("Browser.close")
        self._process.wait(_PATIENCE_S)
        self._selector.close()
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method, session=None, **values):
        """Call a method of the protocol; return what it returns."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": values} | ({"sessionId": session} if session else {})
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._commands, data) :]
        self.wait(lambda: number in self._results, method)
        result = self._results.pop(number)
        assert "error" not in result, (method, result)
        return result["result"]

    def wait(self, holds, what):
        """Take in what the browser sends until ``holds``."""
        deadline = time.monotonic() + _PATIENCE_S
        while not holds():
            assert self._selector.select(max(0.0, deadline - time.monotonic())), f"the browser is silent: {what}"
            data = os.read(self._answers, 1 << 20)
            assert data, f"the browser has ended: {what}"
            *messages, self._rest = (self._rest + data).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self._results[message["id"]] = message
                else:
                    self._events.setdefault(message.get("sessionId"), []).append(message)

    @contextmanager
    def open(self, html, *, fragment="", size=(1280, 900), scheme="light"):
        """Show a page in a window of its own."""
        path = self._folder / f"page-{next(self._numbers)}.html"
        path.write_text(html, encoding="utf-8")
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, self._events.setdefault(session, []))
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        width, height = size
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.call("Page.navigate", url=path.as_uri() + fragment)
        self.wait(lambda: page.happened("Page.loadEventFired"), "loading a page")
        yield page
        self.call("Target.closeTarget", targetId=target)


class Page:
    """A page that was loaded."""

    def __init__(self, browser, session, events):
        self._browser, self._session, self._events = browser, session, events

    def call(self, method, **values):
        return self._browser.call(method, self._session, **values)

    def happened(self, method):
        """Values of the events of one kind, in order."""
        return [event["params"] for event in self._events if event["method"] == method]

    @property
    def console(self):
        """Everything that was said on the console, errors included."""
        calls = [call["args"] for call in self.happened("Runtime.consoleAPICalled")]
        said = [" ".join(str(one.get("value")) for one in values) for values in calls]
        thrown = [one["exceptionDetails"] for one in self.happened("Runtime.exceptionThrown")]
        failed = [one.get("exception", {}).get("description", one["text"]) for one in thrown]
        return [*said, *failed, *(one["entry"]["text"] for one in self.happened("Log.entryAdded"))]

    def ask(self, body):
        """Run the body of an asynchronous function in the page; return what it returns."""
        code = f"(async () => {{ {body} }})()"
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def pdf(self):
        return base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"])
