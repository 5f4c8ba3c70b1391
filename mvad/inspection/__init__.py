"""What is in a folder of images before any model: counts, sizes, unreadable files, duplicates, outliers."""
