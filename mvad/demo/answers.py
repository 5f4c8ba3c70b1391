"""The demo's JSON responses; fields are named like the columns of score rows."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mvad.results.verdicts import Verdict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Candidate(_Answer):
    """A category that an image was compared with."""

    category: str
    strangeness: float = Field(
        description="How far the score lies above the median calibration score of the category, in units of the "
        "distance from that median to the 90 % quantile. The category with the lowest value is chosen."
    )


class RegionAnswer(_Answer):
    """A part of the image whose map is above the pixel threshold: a box in the upright image's own pixels."""

    x: int = Field(ge=0, description="Left.")
    y: int = Field(ge=0, description="Top.")
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    area: int = Field(ge=1, description="Pixels of the box that are above the threshold.")
    peak: float = Field(description="Largest value of the map.")
    mean: float


class ImageAnswer(_Answer):
    """The score of one image, or why it has none."""

    name: str = Field(description="File name as uploaded.")
    status: Literal["ok", "error"]
    error: str | None = Field(default=None, description="A sentence; null if the status is ok.")
    category: str | None = None
    guessed: bool | None = Field(default=None, description="Whether the category was detected automatically.")
    candidates: list[Candidate] | None = Field(
        default=None, description="The closest categories, closest first, if the category was detected automatically."
    )
    score: float | None = Field(default=None, description="Raw score; higher is more abnormal.")
    threshold: float | None = Field(default=None, description="Null if the model is not calibrated.")
    p_value: float | None = Field(
        default=None, ge=0, le=1, description="Share of good images that score as high or higher."
    )
    is_anomaly: bool | None = Field(
        default=None, description="Whether the score is above the threshold; null without a threshold."
    )
    verdict: Verdict | None = Field(
        default=None, description="Uncertain images are not above the threshold, but above that of --uncertain-rate."
    )
    width: int | None = Field(default=None, ge=1, description="Width of the upright image in pixels.")
    height: int | None = Field(default=None, ge=1, description="Height of the upright image in pixels.")
    method: str | None = None
    model_id: str | None = None
    picture: str | None = Field(
        default=None,
        description="On request: the upright image as a data: URI that any browser shows, at most 2048 pixels a side.",
    )
    regions: list[RegionAnswer] | None = Field(
        default=None,
        description="With pictures, and a calibrated model that localises: where the defects are, largest peak first.",
    )
    map: str | None = Field(
        default=None,
        description="On request, if the method localises: a picture of the same size to lie over the image, "
        "transparent where nothing is abnormal. All maps of a category share one colour scale, whose middle is the "
        "threshold.",
    )


class ScoreAnswer(_Answer):
    """One entry per image, in the order of the upload."""

    images: list[ImageAnswer]


class ErrorAnswer(_Answer):
    """Why a request failed."""

    error: str = Field(description="One sentence that says what is wrong and what to do.")
    images: list[ImageAnswer] | None = Field(
        default=None, description="The error of each image, if none could be scored."
    )


class CategoryAnswer(_Answer):
    """A category that images can be scored as."""

    category: str
    method: str
    backbone: str
    input_width: int = Field(ge=1, description="Width in pixels of the model's input.")
    input_height: int = Field(ge=1, description="Height in pixels of the model's input.")
    n_train: int | None = Field(default=None, ge=0, description="Number of good images the model was fitted to.")
    n_calibration: int = Field(
        ge=0, description="Number of good images behind the threshold and p-values; 0 without calibration."
    )
    threshold: float | None = None
    promise: str | None = Field(default=None, description="What the threshold guarantees.")
    model_id: str


class LimitsAnswer(_Answer):
    """Limits of an upload."""

    upload_bytes: int = Field(ge=1, description="Bytes per request.")
    files: int = Field(ge=1, description="Images per request.")
    pixels: int = Field(ge=1, description="Decoded pixels per image.")


class CategoriesAnswer(_Answer):
    """The categories to choose from, and the limits of an upload."""

    categories: list[CategoryAnswer]
    limits: LimitsAnswer
    has_nights: bool = False  # whether there are the pages Nights and Review, too
