"""What the demo answers, as JSON; the names are those of score rows."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Candidate(_Answer):
    """A category that an image was compared with."""

    category: str
    strangeness: float = Field(
        description="How far the score lies above the median calibration score of the category, in units of that up "
        "to their 90 % quantile; of several categories the one with the least is the guess."
    )


class ImageAnswer(_Answer):
    """The score of one image, or why it has none."""

    name: str = Field(description="Of the file, as it was uploaded.")
    status: Literal["ok", "error"]
    error: str | None = Field(default=None, description="A sentence; null if the status is ok.")
    category: str | None = None
    guessed: bool | None = Field(default=None, description="Whether the category was guessed, from the candidates.")
    candidates: list[Candidate] | None = Field(
        default=None, description="Of a guess: the nearest categories, nearest first."
    )
    score: float | None = Field(default=None, description="Raw; the higher, the more abnormal.")
    threshold: float | None = Field(default=None, description="Null for a model without calibration.")
    p_value: float | None = Field(
        default=None, ge=0, le=1, description="Share of good images that score as high or higher."
    )
    is_anomaly: bool | None = Field(
        default=None, description="Whether the score is above the threshold; null without one."
    )
    width: int | None = Field(default=None, ge=1, description="Of the upright image, in pixels.")
    height: int | None = Field(default=None, ge=1)
    method: str | None = None
    model_id: str | None = None
    picture: str | None = Field(
        default=None,
        description="If asked for: the image as a data: URI that any browser shows, upright, at most 2048 pixels.",
    )
    map: str | None = Field(
        default=None,
        description="If asked for, and of a method that localises: a picture of the same size to lie over the image, "
        "clear where nothing is abnormal, in one scale of colours a category, whose middle is the threshold.",
    )


class ScoreAnswer(_Answer):
    """One entry an image, in the order of the upload."""

    images: list[ImageAnswer]


class ErrorAnswer(_Answer):
    """Why a request was not served."""

    error: str = Field(description="One sentence that says what is wrong and what to do.")
    images: list[ImageAnswer] | None = Field(
        default=None, description="Where every image of an upload is at fault: each."
    )


class CategoryAnswer(_Answer):
    """A category that images can be scored as."""

    category: str
    method: str
    backbone: str
    image_size: int = Field(ge=1, description="Side in pixels of the square that the model sees.")
    n_train: int | None = Field(default=None, ge=0, description="Good images it was fitted to.")
    n_calibration: int = Field(ge=0, description="Good images that its threshold and p-values rest on; 0: none.")
    threshold: float | None = None
    promise: str | None = Field(default=None, description="What the threshold promises.")
    model_id: str


class LimitsAnswer(_Answer):
    """What an upload may be."""

    upload_bytes: int = Field(ge=1, description="Of one request.")
    files: int = Field(ge=1, description="Images of one request.")
    pixels: int = Field(ge=1, description="Of one image, decoded.")


class CategoriesAnswer(_Answer):
    """What there is to choose from, and the limits."""

    categories: list[CategoryAnswer]
    limits: LimitsAnswer
