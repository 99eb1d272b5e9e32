"""Writes a parquet file with eight row groups of eight columns, each about 1 MB: make_table.py FILE."""

import sys

import numpy
import pyarrow
import pyarrow.parquet

GROUPS, ROWS_A_GROUP = 8, 122_880

random = numpy.random.default_rng(1)
rows = GROUPS * ROWS_A_GROUP
columns = {"id": numpy.arange(rows)} | {
    name: random.integers(0, 1 << 40, rows)
    for name in ("price", "amount", "weight", "height", "width", "depth", "score")
}
pyarrow.parquet.write_table(
    pyarrow.table(columns), sys.argv[1], row_group_size=ROWS_A_GROUP, use_dictionary=False, compression="none"
)
