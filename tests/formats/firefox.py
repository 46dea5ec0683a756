"""Firefox, headless, through the protocol that it speaks itself (WebDriver BiDi): no driver has to be installed."""

import json
import re
import subprocess
from pathlib import Path


class Firefox:
    """One window. noises: what the console said, and requests that left the file."""

    def __init__(self, program: str, profile: Path):
        import websocket

        options = ["--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0"]
        self.process = subprocess.Popen([program, *options], stderr=subprocess.PIPE, text=True)
        address = next(match[1] for line in self.process.stderr if (match := re.search(r"(ws://\S+)", line)))
        # Firefox refuses connections that say that they come from a web page.
        self.socket = websocket.create_connection(f"{address}/session", timeout=60, suppress_origin=True)
        self.count, self.noises = 0, []
        self.command("session.new", capabilities={})
        self.command("session.subscribe", events=["log.entryAdded", "network.beforeRequestSent"])
        self.context = self.command("browsingContext.getTree")["contexts"][0]["context"]

    def command(self, method: str, **parameters) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.count:
                assert message["type"] == "success", message
                return message["result"]
            self.note(message.get("method"), message.get("params", {}))

    def note(self, event: str, details: dict) -> None:
        if event == "log.entryAdded":
            self.noises.append(details["text"])
        elif event == "network.beforeRequestSent":
            url = details["request"]["url"]
            if not url.startswith(("file:", "blob:", "data:")):  # data: the browser's own style sheets
                self.noises.append(url)

    def open(self, url: str) -> None:
        self.command("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def evaluate(self, expression: str):
        """The value of a JavaScript expression, which may be a promise, as JSON gives it."""
        script = f"Promise.resolve({expression}).then((value) => JSON.stringify(value ?? null))"
        target = {"context": self.context}
        result = self.command("script.evaluate", expression=script, target=target, awaitPromise=True)
        assert result["type"] == "success", result
        return json.loads(result["result"]["value"])

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
