"""Tests of the consistency modes: `contract.py` is inherited by the file of each mode."""
