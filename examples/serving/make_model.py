"""Writes the folders of two versions of a model: make_model.py FOLDER1 FOLDER2.

The versions share the table of embeddings (64 MiB) and differ in the head. All numbers are integers, so that
an answer is exactly right or wrong.
"""

import os
import sys

import numpy
from safetensors.numpy import save_file

ROWS, WIDTH = 4096, 4096

KITFILE = """\
manifestVersion: 1.0.0
package:
  name: recommender
  version: {version}
model:
  name: embeddings
  path: embeddings
  framework: numpy
  parts:
    - name: head
      path: head
"""


def main(folders):
    table = numpy.random.default_rng(1).integers(-1000, 1000, (ROWS, WIDTH), numpy.int32)
    for number, folder in enumerate(folders, start=1):
        head = numpy.random.default_rng(100 + number).integers(-1000, 1000, WIDTH, numpy.int32)
        os.makedirs(f"{folder}/embeddings")
        os.makedirs(f"{folder}/head")
        save_file({"table": table}, f"{folder}/embeddings/table.safetensors")
        save_file({"head": head}, f"{folder}/head/head.safetensors")
        with open(f"{folder}/Kitfile", "w", encoding="utf-8") as file:
            file.write(KITFILE.format(version=f"{number}.0.0"))


main(sys.argv[1:])
