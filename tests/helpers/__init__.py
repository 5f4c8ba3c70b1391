"""What several tests use: pictures, references, stores and nodes that misbehave."""
