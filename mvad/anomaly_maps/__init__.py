"""Anomaly maps: where they lie on the image, and how they are drawn."""
