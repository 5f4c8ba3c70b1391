"""Images as points of a plane, near each other where their features are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from mvad.data.sampling import evenly_spaced
from mvad.inspection.table import by_category

POINTS = 6000  # of all maps together
POINTS_LEAST, POINTS_MOST = 50, 2000  # of one
TSNE_MOST = 1000
TSNE_PERPLEXITY = 30.0
TSNE_EXACT = 200  # points
LEAST = 4  # images that a map is drawn of


def add_maps(table: pa.Table, features: NDArray[np.float16], method: str) -> pa.Table:
    """The image table with ``map_x`` and ``map_y``: a map of each category, of images evenly spaced in it.

    Parameters
    ----------
    method
        ``pca`` or ``tsne``.
    """
    places = np.full((len(table), 2), np.nan, np.float32)
    parts = by_category(table)
    most = min(max(POINTS // len(parts), POINTS_LEAST), POINTS_MOST if method == "pca" else TSNE_MOST)
    start = 0
    readable = np.array([error is None for error in table["error"].to_pylist()])
    for _, part in parts:
        rows = start + np.flatnonzero(readable[start : start + len(part)])
        start += len(part)
        if len(rows) >= LEAST:
            chosen = rows[evenly_spaced(len(rows), most)]
            places[chosen] = plane(features[chosen].astype(np.float32), method)
    for column, name in enumerate(("map_x", "map_y")):
        values = pa.array(places[:, column], mask=np.isnan(places[:, column]))
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def plane(features: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """Coordinates of (n, d) features in a plane: (n, 2), the same for the same features."""
    flat = PCA(n_components=2, svd_solver="full").fit_transform(features)
    if method == "tsne" and len(features) > 3:
        perplexity = min(TSNE_PERPLEXITY, (len(features) - 1) / 3)
        # The approximation runs many threads, which for a few points wait for each other most of the time.
        way = "exact" if len(features) <= TSNE_EXACT else "barnes_hut"
        flat = TSNE(perplexity=perplexity, init="pca", random_state=0, method=way).fit_transform(features)
    return flat.astype(np.float32)
