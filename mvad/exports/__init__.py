"""Where the defects are, as files for other programs: how each format is written, and which rows and names it takes."""
