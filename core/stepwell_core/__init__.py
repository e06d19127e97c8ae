"""The pure core of Stepwell: NumPy arrays in, NumPy arrays out.

No sockets, no files, no clock, no asyncio. The reading order is in `docs/architecture.md`.
"""
