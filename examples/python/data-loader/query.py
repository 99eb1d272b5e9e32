"""Asks one question about the table: query.py ENGINE ADDRESS. Reads two of five columns.

ADDRESS is a folder, or `kitfs://REF`; each library gets it as it is, or the file system of fsspec for it.
"""

import sys

import duckdb
import fsspec
import pandas
import pyarrow.compute
import pyarrow.parquet


def by_pandas(file):
    table = pandas.read_parquet(file, columns=["image", "score"])
    return table["score"][table["image"] == 7].sum()


def by_pyarrow(file):
    fs, path = fsspec.core.url_to_fs(file)
    table = pyarrow.parquet.read_table(path, columns=["image", "score"], filesystem=fs)
    rows = table.filter(pyarrow.compute.field("image") == 7)
    return pyarrow.compute.sum(rows["score"]).as_py()


def by_duckdb(file):
    connection = duckdb.connect()
    if "://" in file:
        connection.register_filesystem(fsspec.filesystem("kitfs"))
    return connection.sql(f"SELECT sum(score) FROM '{file}' WHERE image = 7").fetchall()[0][0]


engine, address = sys.argv[1:]
answer = {"pandas": by_pandas, "pyarrow": by_pyarrow, "duckdb": by_duckdb}[engine](f"{address}/tables/events.parquet")
print(f"{answer:.6f}")
