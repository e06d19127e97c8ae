"""Pushes and pulls against the limits of the machine, each measured in the same run.

One module a subject, each a suite of its own: `python -m benchmarks wire` runs all, and
`python -m benchmarks wire.small` one. The server is started by its command; it, the workers and
what they are measured against are processes of their own.
"""
