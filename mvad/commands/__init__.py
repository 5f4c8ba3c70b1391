"""What each command does, one recipe per file."""
