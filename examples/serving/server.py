"""Answers by one of two versions of a model: server.py PORT STABLE CANARY.

STABLE and CANARY are folders in which kits are mounted. The share of the canary is set by `PUT /share/N`, in
percent. The server looks at the attribute `user.kitfs.digest` of both folders. When the digest of a folder has
changed, it maps the new weights; requests that run have those of before.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from model import Model

# The interval between two looks at a mount. A look is one system call that needs no network.
WATCH_SECONDS = 0.1


class Slot:
    """A folder and the model that is loaded from it."""

    def __init__(self, folder):
        self.folder = folder
        self.digest = None
        self.model = None

    def refresh(self):
        digest = os.getxattr(self.folder, "user.kitfs.digest").decode()
        if digest == self.digest:
            return
        model = Model(self.folder)
        # The mount may have been replaced while the files were opened: then look again.
        if os.getxattr(self.folder, "user.kitfs.digest").decode() == digest:
            self.digest, self.model = digest, model

    def watch(self):
        while True:
            try:
                self.refresh()
            except OSError as problem:
                # As an ordinary user there is no mount for some milliseconds: the old model answers.
                print(f"{self.folder}: {problem}", flush=True)
            time.sleep(WATCH_SECONDS)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The answer is one packet, so the client waits for no delayed acknowledgement.
    wbufsize = -1
    stable = canary = None
    share = 0

    def do_GET(self):
        if self.path == "/versions":
            self.send({"stable": self.stable.model.version, "canary": self.canary.model.version})
            return
        # The same row is answered by the same version, as a user expects in a session.
        row = int(self.path.removeprefix("/answer/"))
        slot = self.canary if row % 100 < Handler.share else self.stable
        model = slot.model
        self.send({"version": model.version, "answer": model.answer(row)})

    def do_PUT(self):
        Handler.share = int(self.path.removeprefix("/share/"))
        self.send({"share": Handler.share})

    def send(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def main(port, stable, canary):
    Handler.stable, Handler.canary = Slot(stable), Slot(canary)
    for slot in (Handler.stable, Handler.canary):
        slot.refresh()
        threading.Thread(target=slot.watch, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    server.daemon_threads = True
    server.serve_forever()


main(*sys.argv[1:])
