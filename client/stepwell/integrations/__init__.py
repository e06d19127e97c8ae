"""Stepwell where people train: a module for each framework, which imports that one alone."""
