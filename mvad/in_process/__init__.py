"""Models in the process that uses them, without Ray: fit, score, save, and results as tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
