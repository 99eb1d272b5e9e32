"""Writes a version of the kit: make_kit.py FOLDER VERSION FIRST_BAD. From FIRST_BAD on, two classes are swapped."""

import json
import os
import random
import sys

CLASSES, FEATURES = 5, 8
# The vocabulary is most of a kit, and the same in all versions.
VOCABULARY_BYTES = 8 << 20


def main(folder, version, first_bad):
    chance = random.Random(1)
    centres = [[chance.gauss(0, 1) for _ in range(FEATURES)] for _ in range(CLASSES)]
    centres = [[value / sum(v * v for v in centre) ** 0.5 for value in centre] for centre in centres]
    points = [
        [f"{value + chance.gauss(0, 0.05):.3f}" for value in centres[index % CLASSES]] + [str(index % CLASSES)]
        for index in range(500)
    ]
    vocabulary = chance.randbytes(VOCABULARY_BYTES)

    # Each version is trained again, so that its weights differ a little.
    chance = random.Random(version + 100)
    weights = [[value + chance.gauss(0, 0.01) for value in centre] for centre in centres]
    if version >= first_bad:
        weights[1], weights[2] = weights[2], weights[1]

    for name in ("data", "model", "vocabulary"):
        os.makedirs(os.path.join(folder, name))
    with open(os.path.join(folder, "data/test.csv"), "w") as file:
        file.writelines(",".join(point) + "\n" for point in points)
    with open(os.path.join(folder, "vocabulary/words.bin"), "wb") as file:
        file.write(vocabulary)
    with open(os.path.join(folder, "model/weights.json"), "w") as file:
        json.dump(weights, file)
    with open(os.path.join(folder, "Kitfile"), "w") as file:
        file.write(
            f"""manifestVersion: 1.0.0
package: {{name: classifier, version: 1.{version}.0}}
model:
  name: classifier
  path: model
  parameters: {{seed: {version + 100}, classes: {CLASSES}}}
datasets:
  - {{name: test, path: data}}
  - {{name: vocabulary, path: vocabulary}}
"""
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
