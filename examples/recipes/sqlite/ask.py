"""Asks a database: ask.py URI SQL [FILE].

With FILE, asks again over the same connection when this file exists.
"""

import os
import sqlite3
import sys
import time

uri, sql = sys.argv[1:3]
connection = sqlite3.connect(uri, uri=True)
# An empty page cache: each question reads the file.
connection.execute("PRAGMA cache_size = 0")
for row in connection.execute(sql):
    print(*row, flush=True)
if len(sys.argv) > 3:
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.1)
    for row in connection.execute(sql):
        print(*row, flush=True)
