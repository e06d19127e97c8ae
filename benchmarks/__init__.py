"""Benchmarks: each suite measures against references in the same run, and knows its bars.

`make bench` runs all that need nothing else; `python -m benchmarks wire.small` runs one. Absolute
times move from machine to machine and from hour to hour; the ratios are what counts.

    measure.py              medians, and figures against bars
    turns.py, programs.py   programs that are measured, in processes of their own
    server.py, ours.py      ours, started and used as by anybody
    adam.py                 work that can be checked, so that nothing idle is timed
    references/             the raw socket, the naive path, a route that does nothing
    update.py, startup.py   suites: the update alone; from the command to ready
    wire/                   suites: pushes and pulls against the limits of the machine
    peers/                  suite: the same work on other systems
    federated/              suite: six workers, 3.35 GB each way
    report.py, picture.py   tables and JSON; the bars of the README
    docs.py                 puts results into docs/benchmarks.md
"""
