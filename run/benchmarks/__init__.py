"""The parts of run/benchmark.py: each a function that yields `Row`s."""
