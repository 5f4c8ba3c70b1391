"""Features to models."""
