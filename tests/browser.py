"""Drives headless Chromium through its DevTools protocol, over a pair of pipes; needs no package.

with Browser() as browser:
    page = browser.open("/tmp/page.html", dark=True, width=1280, height=2000)
    page.evaluate("document.title")
    page.problems   # what the console showed as a warning or error, and uncaught exceptions
    page.requests   # URLs the page asked for, its own left out
"""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 60


def find_chromium():
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(
            prefix="headroom-browser-", ignore_cleanup_errors=True
        )
        to_browser, self.out = os.pipe()
        self.source, from_browser = os.pipe()
        # The protocol's pipes are descriptors 3 and 4 of the browser.
        launch = f'exec {find_chromium()} "$@" 3<&{to_browser} 4>&{from_browser}'
        self.process = subprocess.Popen(
            [
                "sh",
                "-c",
                launch,
                "sh",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
                "--user-data-dir=" + self.profile.name,
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.buffer = b""
        self.count = 0
        self.pages = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.call("Browser.close")
        except (OSError, RuntimeError):
            pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.out)
        os.close(self.source)
        self.profile.cleanup()

    def call(self, method, session=None, **params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.wait(lambda reply: reply.get("id") == message["id"], method)

    def wait(self, wanted, what):
        """Reads messages, handing events to their page, until one is wanted."""
        end = time.monotonic() + TIMEOUT_S
        while True:
            while b"\0" not in self.buffer:
                if not select.select([self.source], [], [], max(0, end - time.monotonic()))[0]:
                    raise RuntimeError(f"no answer from Chromium to {what} in {TIMEOUT_S} s")
                data = os.read(self.source, 1 << 16)
                if not data:
                    raise RuntimeError(f"Chromium ended at {what}")
                self.buffer += data
            text, self.buffer = self.buffer.split(b"\0", 1)
            message = json.loads(text)
            if "method" in message and message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].event(message["method"], message["params"])
            if wanted(message):
                if "error" in message:
                    raise RuntimeError(f"{what}: {message['error']['message']}")
                return message.get("result", message)

    def open(self, path, dark=False, width=1280, height=900, touch=False):
        page = Page(self, pathlib.Path(path).resolve().as_uri())
        page.load(dark, width, height, touch)
        return page


class Page:
    def __init__(self, browser, url):
        self.browser, self.url = browser, url
        self.problems, self.requests = [], []
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)[
            "sessionId"
        ]
        browser.pages[self.session] = self

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def load(self, dark, width, height, touch):
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url=self.url)
        self.browser.wait(
            lambda message: message.get("method") == "Page.loadEventFired"
            and message.get("sessionId") == self.session,
            "loading " + self.url,
        )
        self.settle()

    def event(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.problems.append(
                " ".join(
                    str(argument.get("description", argument.get("value")))
                    for argument in params["args"]
                )
            )
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and params["request"]["url"] != self.url:
            self.requests.append(params["request"]["url"])

    def evaluate(self, expression):
        reply = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in reply:
            raise RuntimeError(
                f"{expression}: {reply['exceptionDetails']['exception'].get('description')}"
            )
        return reply["result"].get("value")

    def text(self, selector):
        """The text of the first element, as it is in the document."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")

    def texts(self, selector):
        every = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.evaluate(every + ".map(e => e.textContent)")

    def count(self, selector):
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def attribute(self, selector, name):
        element = f"document.querySelector({json.dumps(selector)})"
        return self.evaluate(f"{element}.getAttribute({json.dumps(name)})")

    def set(self, ident, value):
        """Gives an input or select a value, as a user would."""
        change = "(id, value) => Object.assign(document.getElementById(id), { value })"
        arguments = f"{json.dumps(ident)}, {json.dumps(str(value))}"
        self.evaluate(f"void ({change})({arguments}).dispatchEvent(new Event('change'))")
        self.settle()

    def settle(self):
        """Lets animation frames that are due be drawn."""
        self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def press(self, key):
        code = {
            "Enter": 13,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
        }
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code[key])
        self.settle()

    def hover(self, selector):
        """Moves the mouse to the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()
        return x, y

    def click(self, selector):
        x, y = self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def screenshot(self, path, full=True):
        data = self.call("Page.captureScreenshot", captureBeyondViewport=full)
        if full:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            data = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        pathlib.Path(path).write_bytes(base64.b64decode(data["data"]))

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
        self.browser.pages.pop(self.session, None)
