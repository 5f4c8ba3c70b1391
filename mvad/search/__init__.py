"""Nearest neighbours in a memory bank."""
