"""Trains a softmax regression on the data set in KITFS_MOUNT: train.py FOLDER writes weights.npy and metrics.json."""

import json
import os
import sys

import numpy

from images import mapped

EPOCHS, BATCH, RATE = 3, 100, 0.1


def inputs(images):
    """Numbers from 0 to 1, and a last column of ones for the bias."""
    scaled = images.astype(numpy.float32) / 255
    return numpy.hstack([scaled, numpy.ones((len(scaled), 1), numpy.float32)])


def main(folder):
    images, labels = mapped(os.path.join(os.environ["KITFS_MOUNT"], "data"), "train")
    weights = numpy.zeros((images.shape[1] + 1, 10), numpy.float32)
    random = numpy.random.default_rng(1)
    right = 0
    for _ in range(EPOCHS):
        right = 0
        for begin in random.permutation(len(images) // BATCH) * BATCH:
            batch, wanted = inputs(images[begin : begin + BATCH]), labels[begin : begin + BATCH]
            scores = batch @ weights
            right += int((scores.argmax(1) == wanted).sum())
            scores = numpy.exp(scores - scores.max(1, keepdims=True))
            scores /= scores.sum(1, keepdims=True)
            scores[numpy.arange(len(wanted)), wanted] -= 1
            weights -= RATE / BATCH * (batch.T @ scores)
    numpy.save(os.path.join(folder, "weights.npy"), weights)
    with open(os.path.join(folder, "metrics.json"), "w", encoding="utf-8") as file:
        json.dump({"images": len(images), "accuracy": right / len(images)}, file)
    print(f"trained on {len(images)} images: accuracy {right / len(images):.3f}")


main(*sys.argv[1:])
