"""Answers one question about the table: query.py ENGINE QUESTION FILE.

one-column: reads one of eight columns. one-group: reads two columns of the rows with certain ids, and the
statistics of the file name the row group that has them. count: reads the footer only.
"""

import sys

import duckdb
import pyarrow
import pyarrow.compute
import pyarrow.dataset

FROM, TO = 250_000, 251_000

SQL = {
    "one-column": "SELECT sum(price) FROM '{file}'",
    "one-group": "SELECT sum(amount) FROM '{file}' WHERE id BETWEEN {begin} AND {end}",
    "count": "SELECT count(*) FROM '{file}'",
}


def by_duckdb(question, file):
    return duckdb.connect().execute(SQL[question].format(file=file, begin=FROM, end=TO)).fetchall()[0][0]


def by_pyarrow(question, file):
    data = pyarrow.dataset.dataset(file)
    if question == "count":
        return data.count_rows()
    if question == "one-column":
        return pyarrow.compute.sum(data.to_table(columns=["price"])["price"]).as_py()
    ids = pyarrow.dataset.field("id")
    rows = data.to_table(columns=["amount"], filter=(ids >= FROM) & (ids <= TO))
    return pyarrow.compute.sum(rows["amount"]).as_py()


engine, question, file = sys.argv[1:]
print({"duckdb": by_duckdb, "pyarrow": by_pyarrow}[engine](question, file))
