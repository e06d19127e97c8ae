"""The server: everything that touches the world, around the pure core."""

__version__ = "0.1.0"
