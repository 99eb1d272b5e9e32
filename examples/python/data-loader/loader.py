"""Loads the images with workers: loader.py ADDRESS METHOD WORKERS EPOCHS.

ADDRESS is a folder, or `kitfs://REF`. METHOD is `fork` or `spawn`. Prints for each epoch the number of samples and a
checksum that no order of the samples changes. With PyTorch the loader is `torch.utils.data.DataLoader`. Without it,
`multiprocessing` starts workers that share the samples, as DataLoader does. `loader.py name` prints which one it is.
"""

import multiprocessing
import random
import sys
import zlib

import fsspec

try:
    from torch.utils.data import DataLoader
except ImportError:
    DataLoader = None


class Images:
    """A file for each sample. Workers get this object by a fork, or by pickle."""

    def __init__(self, address):
        self.fs, folder = fsspec.core.url_to_fs(address)
        self.paths = self.fs.glob(f"{folder}/images/**/*.raw")

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return zlib.crc32(self.fs.cat_file(self.paths[index]))


def same_list(batch):
    return batch


def load_with_torch(images, method, workers):
    loader = DataLoader(
        images,
        batch_size=16,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=method,
        collate_fn=same_list,
    )
    return [checksum for batch in loader for checksum in batch]


def load_with_processes(images, method, workers):
    order = random.sample(range(len(images)), len(images))
    with multiprocessing.get_context(method).Pool(workers) as pool:
        return pool.map(images.__getitem__, order, chunksize=16)


def main(address, method, workers, epochs):
    images = Images(address)
    # A read before the workers start: a forked worker inherits the connection, and must not use it.
    images[0]
    load = load_with_torch if DataLoader else load_with_processes
    for _ in range(epochs):
        checksums = load(images, method, workers)
        print(len(checksums), sum(checksums))


if __name__ == "__main__":
    if sys.argv[1:] == ["name"]:
        print("torch.utils.data.DataLoader" if DataLoader else "multiprocessing")
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
