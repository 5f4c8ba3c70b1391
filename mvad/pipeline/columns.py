"""The columns of a batch, stage by stage: the same whatever a batch holds.

==========  ==============================================================================================
decode in   ``row`` (in the table of images), ``uri``, ``category``, and for fitting ``variant``
decode out  the same and ``pixels`` (n, height, width, 3) uint8, ``width``, ``height``, ``file_size``, ``error``
extract out ``row``, ``error``, ``fingerprint`` (n, side, side) uint8, ``features_<kind>`` (n, ...) float32 each
score out   `SCORED`, one row per image and job
==========  ==============================================================================================

``error`` is "" for an image that can be used. What else is known of an image stays in the table of images, where
``row`` finds it: it does not travel through actors.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad.data.images import Batch
from mvad.results.schema import REGIONS

FEATURES = "features_"  # prefix of the columns that hold features, one per kind
FINGERPRINT = "fingerprint"  # see `search.fingerprints`
SCORED = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("job", pa.int32(), nullable=False),  # number of the scoring job
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("patch_scores", pa.list_(pa.float32())),
        pa.field("patch_grid", pa.list_(pa.int32())),
        pa.field("regions", REGIONS),
        pa.field("anomalous_area", pa.float64()),
    ]
)


def usable(batch: Batch) -> NDArray[np.int64]:
    """Positions of the images in a batch that can be used: (m,)."""
    return np.flatnonzero(batch["error"] == "")
