"""A data set in parts, with labels as text. The first version has the faults that data sets have.

dataset.py make FOLDER       the first version: two classes are missing, and many labels are wrong
dataset.py relabel FOLDER PART CLASS…   corrects the labels of these classes
dataset.py add FOLDER        adds the part with the missing classes, with wrong labels
"""

import os
import sys

import numpy

CLASSES, SIDE, NOISE = 10, 28, 60
# Images of a part, and its classes.
PARTS = {"part1": (8000, range(8)), "part2": (2000, range(8, 10)), "test": (3000, range(10))}
# Labellers took the first for the second, in most cases.
MISTAKES = {3: 5, 0: 6, 8: 9}
MISTAKEN = 0.8


def part(name):
    """The images of a part and their true labels."""
    patterns = numpy.random.default_rng(28).uniform(60, 195, (CLASSES, SIDE, SIDE))
    count, classes = PARTS[name]
    random = numpy.random.default_rng(list(PARTS).index(name))
    labels = random.choice(list(classes), count)
    images = patterns[labels] + random.normal(0, NOISE, (count, SIDE, SIDE))
    return images.clip(0, 255).astype(numpy.uint8), labels


def write(folder, name, mistakes):
    images, labels = part(name)
    os.makedirs(f"{folder}/images/{name}")
    os.makedirs(f"{folder}/labels", exist_ok=True)
    numpy.save(f"{folder}/images/{name}/images.npy", images)
    random = numpy.random.default_rng(99)
    wrong = [mistakes.get(label, label) if random.random() < MISTAKEN else label for label in labels]
    write_labels(folder, name, wrong)


def write_labels(folder, name, labels):
    with open(f"{folder}/labels/{name}.txt", "w") as file:
        file.writelines(f"{label}\n" for label in labels)


def read_labels(folder, name):
    return numpy.loadtxt(f"{folder}/labels/{name}.txt", dtype=int)


def write_kitfile(folder):
    parts = sorted(os.listdir(f"{folder}/images"))
    with open(f"{folder}/Kitfile", "w") as file:
        file.write("manifestVersion: 1.0.0\npackage: {name: patterns}\ndatasets:\n")
        file.write("  - {name: labels, path: labels}\n")
        file.writelines(f"  - {{name: {name}, path: images/{name}}}\n" for name in parts)


def main(action, folder, *arguments):
    if action == "make":
        write(folder, "part1", MISTAKES)
        write(folder, "test", {})
    elif action == "add":
        write(folder, "part2", MISTAKES)
    elif action == "relabel":
        name, *classes = arguments
        labels, truth = read_labels(folder, name), part(name)[1]
        chosen = numpy.isin(truth, [int(label) for label in classes])
        write_labels(folder, name, numpy.where(chosen, truth, labels))
    else:
        sys.exit(__doc__)
    write_kitfile(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
