"""Writes a data set in the form of fashion-mnist: make_data.py FOLDER. Ten classes of blurred patterns under noise."""

import os
import sys

import numpy

COUNTS = {"train": 20000, "t10k": 4000}
SIDE, CLASSES = 28, 10
# With this much noise a linear model is wrong in about one of ten images.
NOISE = 80


def blurred(random):
    """A smooth pattern from 30 to 225."""
    coarse = random.uniform(30, 225, (7, 7))
    steps = numpy.linspace(0, 6, SIDE)
    rows = numpy.array([numpy.interp(steps, range(7), column) for column in coarse.T]).T
    return numpy.array([numpy.interp(steps, range(7), row) for row in rows])


def write(path, header, array):
    with open(path, "wb") as file:
        file.write(numpy.array(header, ">u4").tobytes())
        file.write(array.tobytes())


def main(folder):
    random = numpy.random.default_rng(28)
    patterns = numpy.array([blurred(random) for _ in range(CLASSES)], numpy.float32)
    # Patterns that are alike make the task harder.
    patterns = 0.25 * patterns + 0.75 * patterns.mean(0)
    os.makedirs(folder)
    for part, count in COUNTS.items():
        labels = random.integers(0, CLASSES, count, numpy.uint8)
        images = patterns[labels] + NOISE * random.standard_normal((count, SIDE, SIDE), numpy.float32)
        write(f"{folder}/{part}-images-idx3-ubyte", [2051, count, SIDE, SIDE], images.clip(0, 255).astype(numpy.uint8))
        write(f"{folder}/{part}-labels-idx1-ubyte", [2049, count], labels)


main(*sys.argv[1:])
