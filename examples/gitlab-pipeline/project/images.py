"""The files of a data set in the form of fashion-mnist (idx): images of 28 x 28 bytes, labels of one byte."""

import os

import numpy

IMAGE_BYTES = 28 * 28


def mapped(folder, part):
    """Images (N x 784) and labels (N) of `train` or `t10k`. Both are mapped, and read when they are used."""
    images = numpy.memmap(os.path.join(folder, f"{part}-images-idx3-ubyte"), numpy.uint8, "r", 16)
    labels = numpy.memmap(os.path.join(folder, f"{part}-labels-idx1-ubyte"), numpy.uint8, "r", 8)
    return images.reshape(-1, IMAGE_BYTES), labels
