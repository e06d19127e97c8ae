"""What ours is measured against: the raw socket, the naive HTTP path, a route that does nothing.

Each module is a program that serves, and has the class that calls it.
"""
