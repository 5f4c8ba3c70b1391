"""The Ray Data stages that every command shares."""
