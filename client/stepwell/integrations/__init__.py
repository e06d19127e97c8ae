"""Stepwell inside other frameworks' training loops; each module needs its framework installed."""
