"""Checks each answer, and prints what was asked in each phase: report.py LOG PHASES FOLDER1 FOLDER2.

A line of PHASES has the moment at which a phase began and its name. A phase named `VERSION=SHARE …` lists the
only versions that may answer, with the share of each in percent. Other phases are transitions: any version may
answer.
"""

import bisect
import collections
import json
import sys

from model import Model

# Rows are asked at random, so shares are not exact. With 500 requests, 9 points are four standard deviations of
# a share of 50 percent.
TOLERANCE_PERCENT = 9
REQUESTS_NEEDED = 500


def shares_of(name):
    words = [word.split("=") for word in name.split()]
    if not all(len(word) == 2 for word in words):
        return None
    return {version: int(share) for version, share in words}


def main(log, phases, *folders):
    models = {model.version: model for model in map(Model, folders)}
    with open(phases, encoding="utf-8") as file:
        marks = [line.rstrip("\n").split(" ", 1) for line in file]
    begins = [float(begin) for begin, _ in marks]
    counts = [collections.Counter() for _ in marks]
    longest = [0.0 for _ in marks]
    expected = {}
    problems = []
    with open(log, encoding="utf-8") as file:
        for entry in map(json.loads, file):
            if "failure" in entry:
                problems.append(f"row {entry['row']}: {entry['failure']}")
                continue
            key = entry["version"], entry["row"]
            if key not in expected:
                expected[key] = models[entry["version"]].answer(entry["row"])
            if entry["answer"] != expected[key]:
                problems.append(f"row {entry['row']}: a wrong answer of version {entry['version']}")
            phase = bisect.bisect_right(begins, entry["begin"]) - 1
            # A request that began in one phase and ended in the next belongs to neither.
            if phase == bisect.bisect_right(begins, entry["end"]) - 1:
                counts[phase][entry["version"]] += 1
            longest[phase] = max(longest[phase], entry["end"] - entry["begin"])
    print(f"{'phase':34} requests  share of 1.0.0  of 2.0.0   slowest")
    for (_, name), count, slowest in zip(marks, counts, longest):
        total = count.total()
        share = {version: 100 * count[version] / max(total, 1) for version in ("1.0.0", "2.0.0")}
        print(f"{name:34} {total:8} {share['1.0.0']:12.0f} % {share['2.0.0']:7.0f} % {1000 * slowest:6.0f} ms")
        wanted = shares_of(name)
        if wanted is None:
            continue
        exact = 100 in wanted.values()
        if total < (1 if exact else REQUESTS_NEEDED):
            problems.append(f"phase '{name}' has {total} requests only")
        for version, got in share.items():
            if abs(got - wanted.get(version, 0)) > (0 if exact else TOLERANCE_PERCENT):
                problems.append(f"phase '{name}': version {version} gave {got:.1f} percent of the answers")
    print(f"failed requests and wrong answers: {len(problems)}")
    for problem in problems[:20]:
        print("  " + problem)
    sys.exit(1 if problems else 0)


main(*sys.argv[1:])
