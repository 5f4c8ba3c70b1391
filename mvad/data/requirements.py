"""What a command needs of DATA before it starts, and what it says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from mvad import storage
from mvad.console import Reporter, plural
from mvad.errors import UsageError

if TYPE_CHECKING:
    from mvad.data.listing import Listing
    from mvad.data.manifest import Manifest


def require_training_images(manifest: Manifest) -> pa.Table:
    """The rows of the training images; UsageError if a category has none."""
    train, folder = manifest.split("train"), storage.readable(manifest.root)
    trained = set(train["category"].to_pylist())
    missing = [name for name in manifest.categories if name not in trained]
    if not trained:
        raise UsageError(f"no train/good images under {folder}; a model is learnt from them.")
    if missing:
        raise UsageError(
            f"category {missing[0]!r} under {folder} has no train/good images; add some, or leave it out with "
            "--categories."
        )
    return train


def require_test_images(manifest: Manifest, advice: str) -> pa.Table:
    """The rows of the test images; UsageError, which ends in ``advice``, if there are none."""
    images = manifest.split("test")
    if not len(images):
        raise UsageError(f"no test images under {storage.readable(manifest.root)}{advice}")
    return images


def require_images(images: Listing) -> Listing:
    """A listing that has test images, as far as is known; else UsageError."""
    if images.ended and not images.n_test:
        raise UsageError(f"no test images under {storage.readable(images.root)}.")
    return images


def log_image_count(images: Manifest | Listing, report: Reporter) -> None:
    """Say how many images there are under DATA, and which are left out."""
    categories = plural(len(images.categories), "category", "categories")
    report.info(f"{plural(images.n_images, 'image')} of {categories} in {storage.readable(images.root)}")
    if images.ignored:
        report.warn(f"{plural(images.ignored, 'image file')} left out: the layout has no place for them")
