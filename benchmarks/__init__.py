"""Benchmarks: each suite measures against a reference in the same run, and knows its bars.

`make bench` runs all; `python -m benchmarks update` runs one. Absolute times move from machine to
machine and from hour to hour; the ratios are what counts.
"""
