"""Writes a data set: make_data.py FOLDER. 400 images in ten classes, and a table in parquet with a row for each of
800,000 events.
"""

import os
import sys

import numpy
import pyarrow
import pyarrow.parquet

IMAGES, CLASSES, EVENTS = 400, 10, 800_000

folder = sys.argv[1]
random = numpy.random.default_rng(1)
for number in range(IMAGES):
    images = f"{folder}/images/{number % CLASSES}"
    os.makedirs(images, exist_ok=True)
    with open(f"{images}/{number:03}.raw", "wb") as file:
        file.write(random.bytes(64 * 64 * 3))
os.makedirs(f"{folder}/tables")
table = pyarrow.table(
    {
        "id": numpy.arange(EVENTS),
        "image": random.integers(0, IMAGES, EVENTS),
        "score": random.random(EVENTS),
        "noise": random.random(EVENTS),
        "more_noise": random.random(EVENTS),
    }
)
pyarrow.parquet.write_table(
    table, f"{folder}/tables/events.parquet", row_group_size=EVENTS // 4, compression="none", use_dictionary=False
)
