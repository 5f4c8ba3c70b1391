"""What a model says of one image, as numbers, as a map and as a picture."""

from __future__ import annotations

import base64
import functools
import html
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvad.anomaly_maps.colours import Scale, draw_boxes, overlay
from mvad.anomaly_maps.export import full_map
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.anomaly_maps.regions import Region, regions_in_words
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.in_process.inputs import Reading, read_whole
from mvad.results.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_SIDE = 512  # pixels of the picture that a notebook shows, at most


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image. Names are those of the columns of score rows.

    An image that cannot be used has an ``error``, and nothing else.
    """

    name: str
    score: float | None = None  # higher is more abnormal; unbounded
    p_value: float | None = None  # None without calibration
    threshold: float | None = None  # None without calibration
    is_anomaly: bool | None = None  # None without a threshold
    verdict: Verdict | None = None  # good, uncertain or anomalous
    regions: list[Region] | None = None  # in the upright image's own pixels; None without calibration, or without maps
    anomalous_area: float | None = None  # the share of what the model looks at that is above the pixel threshold
    width: int | None = None  # of the upright image
    height: int | None = None
    error: str | None = None  # why there is no score
    patch_scores: NDArray[np.float32] | None = field(default=None, repr=False)  # (rows, columns)
    _image: Any = field(default=None, repr=False)
    _reading: Reading | None = field(default=None, repr=False)
    _size: ImageSize | None = field(default=None, repr=False)
    _scale: Scale | None = field(default=None, repr=False)

    @functools.cached_property
    def _input_map(self) -> NDArray[np.float32] | None:
        if self.patch_scores is None or self._size is None:
            return None
        return anomaly_map(self.patch_scores, self._size)

    @property
    def anomaly_map(self) -> NDArray[np.float32] | None:
        """The map in the upright image's own pixels, (height, width), NaN where the model did not look.

        None if the image could not be used, the method has no maps, or none was asked for. It is computed each time.
        """
        if self._input_map is None or self._size is None or self._reading is None:
            return None
        sides = {"width": self.width, "height": self.height}
        return full_map(sides, self._input_map, self._size, self._reading.max_pixels)

    @property
    def image(self) -> Image.Image:
        """The upright RGB image, read again from where it came; ImageError if it cannot be."""
        assert self._reading is not None
        return read_whole(self._image, self._reading)

    def picture(self) -> Image.Image:
        """The image with its map over it and the boxes of its regions, in its own size; RGB."""
        picture = self.image
        size = picture.size
        if self._input_map is not None and self._size is not None:
            picture = overlay(picture, self._input_map, self._size, self._scale or _scale_of(self._input_map))
        draw_boxes(picture, [region._asdict() for region in self.regions or ()], *size)
        return picture

    @property
    def summary(self) -> str:
        """One line: the verdict, the score, and where the strongest region is."""
        if self.error is not None:
            return f"error: {self.error}"
        parts = [self.verdict or "no threshold", f"score {self.score:.4g}"]
        if self.threshold is not None:
            parts.append(f"threshold {self.threshold:.4g}")
        if self.p_value is not None:
            parts.append(f"p-value {self.p_value:.3g}")
        if self.regions is not None:
            parts.append(regions_in_words([region._asdict() for region in self.regions]))
        return ", ".join(parts)

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw `picture` on axes of matplotlib, by default new ones; returns them.

        UsageError if matplotlib is not installed, or the image has an error.
        """
        try:
            import matplotlib.pyplot as pyplot
        except ImportError:
            raise UsageError("plots need matplotlib, which is not installed: pip install matplotlib.") from None
        if self.error is not None:
            raise UsageError(f"{self.name} {self.error}: there is nothing to plot.")
        if axes is None:
            axes = pyplot.subplots()[1]
        axes.imshow(np.asarray(self.picture()))
        axes.set_title(self.summary, fontsize="small", wrap=True)
        axes.set_axis_off()
        return axes

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        caption = f"<div><b>{html.escape(self.name)}</b><br>{html.escape(self.summary)}</div>"
        if self.error is not None:
            return caption
        try:
            picture = self.picture()
        except ValueError as error:  # the file is gone, say
            return f"{caption}<div>{html.escape(str(error))}</div>"
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        file = io.BytesIO()
        picture.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        return f'{caption}<img src="data:image/png;base64,{data}" alt="{html.escape(self.summary)}">'


def _scale_of(values: NDArray[np.float32]) -> Scale:
    """The colours of a map without a threshold: from its median to its largest value."""
    return Scale(float(np.median(values)), float(values.max()), has_threshold=False)
