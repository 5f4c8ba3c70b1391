"""The results of many nights together: their rows, what people said of the images, and what follows from both."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
