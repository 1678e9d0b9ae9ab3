"""Measurements: the demo, selector timings, latency. Results with machine facts stand in ``results/``."""
