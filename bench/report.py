"""Summarizes the rounds, and writes them as tables and a chart."""

import json
import os
import re
import statistics

from load import SCALE
from process import ROOT

RECORD = r"(<!-- bench/run --record -->\n).*?(<!-- end -->)"
SHORT = (  # The rows of the README.
    "native hyper",
    "wasi-essentials",
    "wasi-essentials, sandbox reused",
    "wasmtime serve, resident",
    "spin up, WASI 0.3",
    "Node.js, one process",
    "Node.js, cluster",
    "Flask, gunicorn",
)
RATIOS = {"requests_per_second": "throughput", "events_per_second": "throughput"}


def summarize(servers, rounds, starts=None):
    """For each server, the medians of its rounds, and of its ratios to the first server in the same round.

    `starts` has the time of a start of each server in milliseconds.
    """
    results = []
    limit = rounds[servers[0].name]
    for server in servers:
        mine = rounds[server.name]
        row = {"server": server.name} | medians(mine)
        for figure, ratio in RATIOS.items():
            if figure in mine[0]:
                row |= spread(f"{ratio}_ratio", [one[figure] / best[figure] for one, best in zip(mine, limit, strict=True)])
        if starts:
            time = starts[server.name]
            row |= {"start_ms": time, "start_ratio": time / starts[servers[0].name]}
        row["binary_bytes"] = os.path.getsize(server.binary) if server.binary else None
        results.append(row)
    return results


def medians(rounds):
    return {figure: statistics.median(one[figure] for one in rounds) for figure in rounds[0]}


def spread(name, values):
    """Median and interquartile range."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


# Figures: head of the column, and its cell.
def figure(head, key, text):
    return head, lambda row: "–" if row.get(key) is None else text(row[key])


def ratio(head, name):
    return head, lambda row: f"{row[name]:.2f} ({row[f'{name}_low']:.2f}–{row[f'{name}_high']:.2f})"


def milliseconds(value):
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def megabytes(size):
    return f"{size / 1e6:.1f} MB"


def count(value):
    return f"{value:,.0f}"


def microseconds(value):
    return f"{value:,.0f} µs"


NAME = figure("server", "server", str)
REQUESTS = figure("requests/s", "requests_per_second", count)
LATENCY = (figure("p50", "p50_ms", milliseconds), figure("p99", "p99_ms", milliseconds))
CPU = figure("CPU per request", "cpu_us", microseconds)
START = figure("start", "start_ms", milliseconds)
IDLE = figure("idle", "idle_bytes", megabytes)
LOADED = figure("loaded", "loaded_bytes", megabytes)
SHORT_COLUMNS = (
    NAME,
    REQUESTS,
    figure("vs. native", "throughput_ratio", "{:.2f}".format),
    LATENCY[1],
    START,
    figure("idle memory", "idle_bytes", megabytes),
)
HELLO_COLUMNS = (
    NAME, REQUESTS, ratio("vs. native", "throughput_ratio"), *LATENCY, CPU, START,
    figure("vs. native", "start_ratio", "{:,.1f}".format), IDLE, LOADED, figure("binary", "binary_bytes", megabytes),
)  # fmt: skip
EVENT_COLUMNS = (
    NAME,
    figure("events/s", "events_per_second", count),
    figure("delay, p50", "p50_ms", milliseconds),
    figure("delay, p99", "p99_ms", milliseconds),
    figure("CPU per event", "cpu_us", microseconds),
    IDLE,
    LOADED,
    figure("per client", "client_bytes", lambda size: f"{size / 1e3:.0f} KB"),
)
CONTAINER_COLUMNS = (
    figure("container", "container", str),
    figure("image", "image", "`{}`".format),
    figure("first response", "start_ms", milliseconds),
    ("interquartile", lambda row: f"{row['start_ms_low']:.0f}–{row['start_ms_high']:.0f} ms"),
)


def columns(key, rows):
    """The columns of a workload's table."""
    if key == "hello":
        return HELLO_COLUMNS
    if key == "events":
        return EVENT_COLUMNS
    return NAME, REQUESTS, ratio(f"vs. {rows[0]['server']}", "throughput_ratio"), *LATENCY, CPU, IDLE, LOADED


def table(columns, rows):
    lines = [f"| {' | '.join(head for head, _ in columns)} |", "|---|" + (len(columns) - 1) * "--:|"]
    return lines + [f"| {' | '.join(cell(row) for _, cell in columns)} |" for row in rows]


def short(report):
    """The README's table."""
    rows = {row["server"]: row for row in report["workloads"]["hello"]["results"]}
    lines = table(SHORT_COLUMNS, [rows[name] for name in SHORT if name in rows])
    return "\n".join([*lines, "", conditions(report)])


def conditions(report):
    return "{date}, {machine}: {connections} connections, {rounds} rounds of {seconds} s.".format(**report)


def page(report):
    """All tables."""
    lines = [f"{conditions(report)} Linux {report['linux']}.", ""]
    for key, workload in report["workloads"].items():
        rows = workload["results"]
        lines += [f"### {workload['title']}", "", *table(columns(key, rows), rows), ""]
    if report["scale"]:
        lines += ["### How it scales", "", *scale_table(report["scale"]), ""]
    if report["containers"]:
        lines += ["### From `docker run` to the first response", "", *table(CONTAINER_COLUMNS, report["containers"]), ""]
    if report["image_bytes"]:
        lines += [f"The image of wasi-essentials is {megabytes(report['image_bytes'])}, compressed.", ""]
    if report["missing"]:
        lines += ["### Missing", "", "| row | reason |", "|---|---|"]
        lines += [*(f"| {name} | {reason} |" for name, reason in report["missing"].items()), ""]
    lines += ["### Versions", "", "| part | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in report["versions"].items()]
    return "\n".join(lines)


def scale_table(rounds):
    units = {"requests_per_second": ("requests/s", count), "cpu_us": ("CPU per request", microseconds)}
    columns = [figure(f"{case}: {units[key][0]}", case, units[key][1]) for case, _, _, key in SCALE]
    return table([NAME, *columns], [{"server": name} | figures for name, figures in rounds.items()])


def chart(report):
    """The throughput as bars, readable on light and dark pages."""
    rows, width, bar, left = report["workloads"]["hello"]["results"], 720, 22, 300
    best = max(row["throughput_ratio"] for row in rows)
    shapes = []
    for index, row in enumerate(rows):
        top = 34 + index * (bar + 8)
        length = max(1, (width - left - 60) * row["throughput_ratio"] / best)
        kind = "own" if row["server"].startswith("wasi-essentials") else "other"
        shapes.append(
            f'<text class="name" x="{left - 8}" y="{top + 15}">{row["server"]}</text>'
            f'<rect class="{kind}" x="{left}" y="{top}" width="{length:.0f}" height="{bar}" rx="3"/>'
            f'<text x="{left + length + 6:.0f}" y="{top + 15}">{row["throughput_ratio"]:.2f}</text>'
        )
    height = 34 + len(rows) * (bar + 8)
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.name{text-anchor:end}"
        ".own{fill:#654ff0}.other{fill:#8c959f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.own{fill:#9a8cff}.other{fill:#6e7681}}"
    )
    title = "Throughput, native hyper = 1"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{title}</title><style>{style}</style>"
        f'<text x="{left}" y="20">{title}</text>{"".join(shapes)}</svg>\n'
    )


def record(report, results):
    """Writes the results, the chart, and the tables of the README and of docs/benchmarks.md."""
    results.write_text(json.dumps(report, indent=2) + "\n")
    (ROOT / "bench" / "chart.svg").write_text(chart(report))
    for name, text in (("README.md", short(report)), ("docs/benchmarks.md", page(report))):
        file = ROOT / name
        whole = file.read_text()
        marks = re.search(RECORD, whole, re.DOTALL)
        file.write_text(f"{whole[: marks.end(1)]}\n{text}\n\n{whole[marks.start(2) :]}")
