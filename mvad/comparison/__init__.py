"""A comparison: the variants of options, the table, its intervals, and how it is printed."""
