"""Reproducible benchmarks: each prints figures of one run, as ratios to a limit measured in it."""
