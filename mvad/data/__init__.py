"""Images on their way in."""
