"""The HTML report on the results of a run."""
