"""Loads a data set with forked workers: loader.py FOLDER WORKERS EPOCHS.

Prints the name of the loader, and for each epoch the number of samples and a checksum that no order of the samples
changes. With PyTorch the loader is `torch.utils.data.DataLoader`. Without it, `multiprocessing` forks workers that
share the samples among them, as DataLoader does.
"""

import multiprocessing
import os
import random
import sys
import zlib

import numpy

try:
    from torch.utils.data import DataLoader
except ImportError:
    DataLoader = None


class Samples:
    """A file for each sample, and a row of an array that is mapped before the workers are forked."""

    def __init__(self, folder):
        self.features = numpy.load(f"{folder}/features/features.npy", mmap_mode="r")
        names = (f"{path}/{name}" for path, _, names in os.walk(f"{folder}/images") for name in names)
        self.images = sorted(names)
        # Workers share this descriptor with its offset, so they must not move the offset: pread does not.
        self.labels = os.open(f"{folder}/features/labels.bin", os.O_RDONLY)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        with open(self.images[index], "rb") as file:
            checksum = zlib.crc32(file.read())
        checksum = zlib.crc32(self.features[index].tobytes(), checksum)
        return zlib.crc32(os.pread(self.labels, 8, 8 * index), checksum)


def same_list(batch):
    return batch


def load_with_torch(samples, workers):
    loader = DataLoader(
        samples,
        batch_size=32,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="fork",
        collate_fn=same_list,
    )
    return [checksum for batch in loader for checksum in batch]


samples_of_workers = None


def checksum_of(index):
    return samples_of_workers[index]


def load_with_processes(samples, workers):
    global samples_of_workers
    samples_of_workers = samples
    order = random.sample(range(len(samples)), len(samples))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return pool.map(checksum_of, order, chunksize=32)


def main(folder, workers, epochs):
    samples = Samples(folder)
    # A read before the fork: the workers inherit the mapping with its pages.
    samples[0]
    print("torch.utils.data.DataLoader" if DataLoader else "multiprocessing")
    load = load_with_torch if DataLoader else load_with_processes
    for _ in range(epochs):
        checksums = load(samples, workers)
        print(len(checksums), sum(checksums))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
