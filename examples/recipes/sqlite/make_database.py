"""Writes a database of 300,000 rows in WAL mode: make_database.py FILE NAME."""

import sqlite3
import sys

path, name = sys.argv[1:]
connection = sqlite3.connect(path)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, description TEXT)")
connection.executemany(
    "INSERT INTO item VALUES (?, ?, ?)",
    ((id, f"{name} {id}", "a description " * 5) for id in range(1, 300_001)),
)
connection.commit()
connection.close()
