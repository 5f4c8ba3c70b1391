"""Find, list and decode images."""
