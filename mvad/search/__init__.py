"""Nearest neighbours in a memory bank, and the coreset that fills it."""
