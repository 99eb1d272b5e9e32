"""Classifies images by the model in KITFS_MOUNT: serve.py PORT. POST of N x 784 bytes gives N labels of one byte."""

import http.server
import os
import sys

import numpy

from images import IMAGE_BYTES

weights = numpy.load(os.path.join(os.environ["KITFS_MOUNT"], "weights.npy"), mmap_mode="r")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        images = numpy.frombuffer(body, numpy.uint8).reshape(-1, IMAGE_BYTES).astype(numpy.float32) / 255
        labels = (images @ weights[:-1] + weights[-1]).argmax(1).astype(numpy.uint8).tobytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(labels)))
        self.end_headers()
        self.wfile.write(labels)

    def log_message(self, *_):
        """A line for each request would hide errors."""


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
