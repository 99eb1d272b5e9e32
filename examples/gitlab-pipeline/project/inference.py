"""Asks the server about the test set in KITFS_MOUNT: inference.py URL MINIMUM fails at a lower accuracy."""

import os
import sys
import urllib.request

import numpy

from images import mapped

BATCH = 500


def main(url, minimum):
    images, labels = mapped(os.path.join(os.environ["KITFS_MOUNT"], "data"), "t10k")
    right = 0
    for begin in range(0, len(images), BATCH):
        body = images[begin : begin + BATCH].tobytes()
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
            answer = numpy.frombuffer(response.read(), numpy.uint8)
        right += int((answer == labels[begin : begin + BATCH]).sum())
    accuracy = right / len(images)
    print(f"accuracy on {len(images)} test images: {accuracy:.3f}")
    if accuracy < float(minimum):
        sys.exit(f"error: the accuracy is below {minimum}")


main(*sys.argv[1:])
