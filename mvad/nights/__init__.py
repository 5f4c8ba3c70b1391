"""The results of many nights together: their rows, what people said of the images, and what follows from both."""
