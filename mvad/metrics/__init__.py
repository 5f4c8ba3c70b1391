"""Metrics of image scores against labels, and of anomaly maps against masks."""
