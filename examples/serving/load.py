"""Asks the server over kept-alive connections: load.py PORT LOG SEED.

Writes a line for each request: when it began and ended, the row, the version and the answer, or the failure.
Ends at SIGTERM, after the requests that run.
"""

import http.client
import json
import random
import signal
import sys
import threading
import time

CONNECTIONS = 8
ROWS = 4096
# Users think. Without a pause all of the table would have come before the first kill.
PAUSE_SECONDS = 0.02
# A request that takes longer has failed.
TIMEOUT_SECONDS = 60

stopped = threading.Event()


def ask(port, log, lock, seed):
    choice = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    while not stopped.is_set():
        row = choice.randrange(ROWS)
        entry = {"row": row, "begin": time.time()}
        try:
            connection.request("GET", f"/answer/{row}")
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise OSError(f"status {response.status}")
            entry |= json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            entry["failure"] = repr(problem)
            connection.close()
        entry["end"] = time.time()
        with lock:
            log.write(json.dumps(entry) + "\n")
        stopped.wait(PAUSE_SECONDS)


def main(port, path, seed):
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    lock = threading.Lock()
    with open(path, "w", buffering=1, encoding="utf-8") as log:
        threads = [
            threading.Thread(target=ask, args=(int(port), log, lock, f"{seed}/{number}"))
            for number in range(CONNECTIONS)
        ]
        for thread in threads:
            thread.start()
        while not stopped.wait(0.1):
            pass
        for thread in threads:
            thread.join()


main(*sys.argv[1:])
