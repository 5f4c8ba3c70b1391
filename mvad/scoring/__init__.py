"""Models to score rows."""
