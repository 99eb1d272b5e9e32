"""The tables: one a group of cases, in Markdown, with medians and ranges of the rounds."""

import statistics

HEAD = ("case", "what", "seconds", "MB/s", "ratio", "fetched MiB", "requests", "amplification",
        "daemon CPU s", "CPU s/GiB", "peak RSS MiB", "bar")
MIB = 1 << 20


def table(title, results):
    """`results`: (case, {label: [sample a round]}) of each case that was run."""
    lines = [f"### {title}", "", "| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    for case, samples in results:
        for at, row in enumerate(case.rows):
            if samples[row.label]:
                base = samples[row.against or case.rows[0].label]
                cells = [case.title if at == 0 else "", row.label, *figures(samples[row.label], base)]
                cells.append("; ".join(verdicts(row, samples[row.label], base)))
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figures(samples, base):
    column = lambda make: [make(it) for it in samples]
    has = lambda name: all(name in it for it in samples)
    seconds = spread(column(lambda it: it["seconds"]))
    if has("latencies"):
        every = sorted(each * 1000 for it in samples for each in it["latencies"])
        p99 = every[min(len(every) - 1, len(every) * 99 // 100)]
        seconds += f"; p50 {statistics.median(every):.1f} ms, p99 {p99:.1f} ms"
    if has("mounted"):
        seconds += f"; mounted after {spread(column(lambda it: it['mounted']))}"
    if has("confirmed"):
        seconds += f"; confirmed {spread(column(lambda it: it['confirmed']))} later"
    ratios = [it["seconds"] / that["seconds"] for it, that in zip(samples, base)]
    far, near = has("fetched"), has("cpu")
    return [
        seconds,
        f"{statistics.median(column(lambda it: it['bytes'] / it['seconds'] / 1e6)):.0f}"
        if samples[0]["bytes"] > MIB else "",
        "1" if samples is base else f"{statistics.median(ratios):.2f}",
        f"{median(samples, 'fetched') / MIB:.1f}" if far else "",
        f"{median(samples, 'requests'):.0f}" if far else "",
        f"{statistics.median(column(lambda it: it['fetched'] / it['bytes'])):.2f}" if far and
        samples[0]["bytes"] > 1 else "",
        spread(column(lambda it: it["cpu"])) if near else "",
        f"{statistics.median(column(lambda it: it['cpu'] / it['bytes'])) * (1 << 30):.2f}"
        if near and samples[0]["bytes"] > MIB else "",
        f"{max(column(lambda it: it['rss'])):.0f}" if has("rss") else "",
    ]


def verdicts(row, samples, base):
    for bar in row.bars:
        good, text = bar.judge(samples, base)
        yield f"{text}: {'pass' if good else '**FAIL**'}"


def median(samples, name):
    return statistics.median(it[name] for it in samples)


def spread(values):
    middle = f"{statistics.median(values):.3g}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.3g}-{max(values):.3g})"
