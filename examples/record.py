"""Writes the output of an example into its page: record.py SCRIPT OUTPUT WORK.

The page is README.md beside the script, or docs/recipes.md for a recipe. The output stands between the lines
`<!-- output: NAME -->` and `<!-- end of output -->`. Paths of the machine, ports and times are made the same in
every run.
"""

import os
import re
import sys


def normalised(text, work):
    text = text.replace(work, "/work")
    # Each port of 127.0.0.1 keeps a number of its own: 5000, 5001, …
    ports = {}
    text = re.sub(
        r"(127\.0\.0\.1|localhost):([1-9]\d*)",
        lambda match: f"{match[1]}:{ports.setdefault(match[2], 5000 + len(ports))}",
        text,
    )
    text = re.sub(r"(--while-pid|as process) \d+", r"\1 4711", text)
    # A time behind `=` is the value of an option, and no measurement.
    return re.sub(r"(?<!=)\b\d+([.,]\d+)? ?(s|ms|seconds)\b", r"N \2", text)


def main(script, output, work):
    folder = os.path.dirname(script)
    examples = os.path.dirname(os.path.abspath(__file__))
    name = os.path.relpath(folder, examples)
    page = os.path.join(folder, "README.md")
    if not os.path.exists(page):
        page = os.path.join(os.path.dirname(examples), "docs", "recipes.md")
    with open(output, encoding="utf-8") as file:
        text = normalised(file.read(), work).strip("\n")
    with open(page, encoding="utf-8") as file:
        before = file.read()
    begin, end = f"<!-- output: {name} -->\n", "<!-- end of output -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    block = f"{begin}```console\n{text}\n```\n{end}"
    after, count = pattern.subn(lambda _: block, before)
    if count != 1:
        sys.exit(f"error: {page} needs one block `{begin.strip()}` … `{end}`")
    with open(page, "w", encoding="utf-8") as file:
        file.write(after)


main(*sys.argv[1:])
