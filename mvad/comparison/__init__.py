"""A comparison: the variants of options, the table, its intervals, how it is printed; and fits to random splits."""
