"""Where the vectors of a memory bank come from: which good image, and where in it."""
