"""Image features in the plane, where images that look alike to the backbone lie close to each other."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from mvad.data.sampling import evenly_spaced
from mvad.inspection.table import by_category

MAX_POINTS = 6000  # of all categories together
MIN_POINTS = 50  # that each category may have at least, however many categories there are
MAX_CATEGORY_POINTS = {"pca": 2000, "tsne": 1000}
TSNE_PERPLEXITY = 30.0
MAX_EXACT_TSNE_POINTS = 200
MIN_IMAGES = 4  # fewer images are not embedded


def add_embedding(
    images: pa.Table, features: NDArray[np.float16], method: str, max_category_points: int | None = None
) -> pa.Table:
    """Fill ``map_x`` and ``map_y`` of the image table for evenly spaced images of each category.

    ``features`` are (n, d); ``method`` is ``pca`` or ``tsne``.
    """
    coordinates = np.full((len(images), 2), np.nan, np.float32)
    categories = by_category(images)
    limit = max_category_points or MAX_CATEGORY_POINTS[method]
    max_points = min(max(MAX_POINTS // len(categories), MIN_POINTS), limit)
    readable = pc.is_null(images["error"]).to_numpy()
    for _, start, part in categories:
        rows = start + np.flatnonzero(readable[start : start + len(part)])
        if len(rows) >= MIN_IMAGES:
            sample = rows[evenly_spaced(len(rows), max_points)]
            coordinates[sample] = embed(features[sample].astype(np.float32), method)
    for name, values in zip(("map_x", "map_y"), coordinates.T, strict=True):
        column = pa.array(values, mask=np.isnan(values))
        images = images.set_column(images.schema.get_field_index(name), name, column)
    return images


def embed(features: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """Embed (n, d) features in the plane: (n, 2) float32, the same for the same features."""
    coordinates = PCA(n_components=2, svd_solver="full").fit_transform(features)
    if method == "tsne" and len(features) > 3:
        perplexity = min(TSNE_PERPLEXITY, (len(features) - 1) / 3)
        # For few points, the threads of the approximation mostly wait for each other.
        algorithm = "exact" if len(features) <= MAX_EXACT_TSNE_POINTS else "barnes_hut"
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=0, method=algorithm)
        coordinates = tsne.fit_transform(features)
    return coordinates.astype(np.float32)
