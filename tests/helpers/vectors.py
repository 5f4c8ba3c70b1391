"""Banks and patches of many kinds, including awkward ones."""

import numpy as np

KINDS = ("random", "clustered", "far from the origin", "integers", "duplicates", "constant", "one point", "in the bank")


def example(kind, random, vectors, images, patches, width):
    """A bank (vectors, width) and patches (images, patches, width), float32, of one of `KINDS`."""
    bank = random.standard_normal((vectors, width))
    rows = random.standard_normal((images, patches, width))
    if kind == "clustered":
        centres = random.standard_normal((5, width)) * 10
        bank = bank * 0.1 + centres[random.integers(0, 5, vectors)]
        rows = rows * 0.1 + centres[random.integers(0, 5, (images, patches))]
    if kind == "far from the origin":
        bank, rows = bank + 300, rows + 300
    if kind == "integers":
        bank, rows = random.integers(0, 3, bank.shape), random.integers(0, 3, rows.shape)
    if kind == "duplicates":
        bank, rows = bank[random.integers(0, 2, vectors) % vectors], rows[:, random.integers(0, 2, patches) % patches]
    if kind == "constant":
        bank, rows = np.ones_like(bank), np.full_like(rows, 3)
    if kind == "one point":
        bank = bank[:1]
    if kind == "in the bank":
        rows = bank[random.integers(0, vectors, (images, patches))]
    return bank.astype(np.float32), rows.astype(np.float32)
