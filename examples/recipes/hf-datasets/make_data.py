"""Writes a data set as parquet, JSON and Arrow files: make_data.py FOLDER LABEL.

Files of two versions have the same size if their labels have.
"""

import json
import sys

import datasets
import pyarrow
import pyarrow.parquet

ROWS = 20_000

folder, label = sys.argv[1:]
table = pyarrow.table({"number": list(range(ROWS)), "label": [label] * ROWS})
pyarrow.parquet.write_table(table, f"{folder}/train.parquet", compression="none", use_dictionary=False)
with open(f"{folder}/train.jsonl", "w", encoding="utf-8") as file:
    for row in table.to_pylist():
        file.write(json.dumps(row) + "\n")
datasets.disable_progress_bars()
datasets.Dataset(table).save_to_disk(f"{folder}/arrow")
