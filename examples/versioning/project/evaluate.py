"""Measures a kit: evaluate.py FOLDER [MINIMUM]. The exit code is 10 if the accuracy is below."""

import csv
import json
import os
import sys


def main(folder, minimum=0.0):
    with open(os.path.join(folder, "model/weights.json")) as file:
        weights = json.load(file)
    right = total = 0
    with open(os.path.join(folder, "data/test.csv")) as file:
        for *point, label in csv.reader(file):
            point = [float(value) for value in point]
            scores = [sum(map(float.__mul__, row, point)) for row in weights]
            right += scores.index(max(scores)) == int(label)
            total += 1
    print(f"accuracy {right / total:.3f}")
    return 10 if right / total < minimum else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
