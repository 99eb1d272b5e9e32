"""Writes a data set of 2,000 samples: make_data.py FOLDER."""

import os
import sys

import numpy

SAMPLES, CLASSES = 2000, 10

folder = sys.argv[1]
random = numpy.random.default_rng(1)
for number in range(SAMPLES):
    images = f"{folder}/images/{number % CLASSES}"
    os.makedirs(images, exist_ok=True)
    with open(f"{images}/{number:04}.raw", "wb") as file:
        file.write(random.bytes(28 * 28 * 3))
os.makedirs(f"{folder}/features")
numpy.save(f"{folder}/features/features.npy", random.standard_normal((SAMPLES, 4096), numpy.float32))
random.integers(0, CLASSES, SAMPLES).tofile(f"{folder}/features/labels.bin")
