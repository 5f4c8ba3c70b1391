"""The pages Nights and Review: what happened over time, and what people say of the images.

Charts are drawn by uPlot 1.6.32 (MIT license), which is part of the package: the pages load nothing from elsewhere.
"""
