"""Measure speed and memory: against anomalib, against the floor, against the plain forms of the algorithms."""
