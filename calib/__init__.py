"""Calibration of INT8 bundles. Empty in 0.1: bundles are fp32 so far."""
