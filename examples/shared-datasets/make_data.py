"""Writes a data set: make_data.py FOLDER COUNT. COUNT small images (2 KiB each) in ten folders, and a list of labels."""

import os
import random
import sys

folder, count = sys.argv[1], int(sys.argv[2])
numbers = random.Random(1)
labels = ["image,label\n"]
for number in range(count):
    label = number % 10
    name = f"images/{label}/{number:05}.raw"
    os.makedirs(f"{folder}/images/{label}", exist_ok=True)
    with open(f"{folder}/{name}", "wb") as file:
        file.write(numbers.randbytes(2048))
    labels.append(f"{name},{label}\n")
with open(f"{folder}/labels.csv", "w", encoding="utf-8") as file:
    file.writelines(labels)
