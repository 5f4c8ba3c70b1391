"""The methods as estimators, in the manners of scikit-learn: options in the constructor, `fit`, then `predict`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mvad import storage
from mvad.data.layouts.files import find_images
from mvad.detectors import METHODS
from mvad.errors import UsageError
from mvad.in_process.inputs import ImageLike, as_list
from mvad.in_process.model import Model
from mvad.in_process.prediction import Prediction
from mvad.options import DetectorOptions, EstimatorOptions, build, keywords_of, option_names

# Options of jobs, which mean nothing for images that are given.
OF_JOBS = {"method", "category", "categories", "layout", "limit", "max_errors", "address", "actors", "batch_size"}
OF_JOBS |= {"quiet", "new_run"}
DEFAULT_CATEGORY = "product"


class Estimator:
    """Learns from good images of one product, and scores others, in this process.

    Parameters
    ----------
    category
        What the product is called in the saved model.
    threads
        How many images are scored side by side; by default as many as there are cores.
    **options
        Those of ``mvad fit`` and ``mvad score``, such as ``backbone`` and ``false_alarm_rate``, by the same names.

    Attributes
    ----------
    model_ : Model
        After `fit`: what was learnt.
    errors_ : dict
        After `fit`: why images could not be used, by name.

    The model is that of a job with the same images, in the order of their names, and options; where variants of images
    are learnt from (``augmentations``, ``shots``), they are others, since they depend on the names.
    """

    method: ClassVar[str]
    model_: Model
    errors_: dict[str, str]

    def __init_subclass__(cls) -> None:
        """Give the estimator of a method its options as its signature, and the first lines of its docstring."""
        first = inspect.cleandoc(METHODS[cls.method].__doc__ or "").split("\n\n")[0]
        cls.__doc__ = f"{first}\n\n{inspect.cleandoc(Estimator.__doc__ or '')}"
        options = {parameter.name: parameter for parameter in keywords_of(EstimatorOptions)}
        own = [
            inspect.Parameter("category", inspect.Parameter.KEYWORD_ONLY, default=DEFAULT_CATEGORY),
            inspect.Parameter("threads", inspect.Parameter.KEYWORD_ONLY, default=None),
        ]
        parameters = [*own, *(options[name] for name in cls.option_names())]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __init__(self, *, category: str = DEFAULT_CATEGORY, threads: int | None = None, **options: Any) -> None:
        self.category, self.threads = category, threads
        self._options: dict[str, Any] = {}
        self._set(options)

    @classmethod
    def option_names(cls) -> list[str]:
        """The names of all options that the method uses, in the order of their groups."""
        own = {field.name for field in fields(METHODS[cls.method].Params)}
        left_out = OF_JOBS | (option_names(DetectorOptions) - own)
        return [parameter.name for parameter in keywords_of(EstimatorOptions) if parameter.name not in left_out]

    def _set(self, options: Mapping[str, Any]) -> None:
        unknown = sorted(options.keys() - {*self.option_names()})
        if unknown:
            raise TypeError(f"{type(self).__name__} has no option {unknown[0]!r}")
        self._options.update(options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All options by name, with the values given or their defaults; ``deep`` is for scikit-learn, and ignored."""
        defaults = {field.name: field.default for field in fields(EstimatorOptions)}
        options = {name: self._options.get(name, defaults[name]) for name in self.option_names()}
        return {"category": self.category, "threads": self.threads, **options}

    def set_params(self, **params: Any) -> Estimator:
        """Change options by name, before `fit`; TypeError if there is no such option. Returns the estimator."""
        self.category = params.pop("category", self.category)
        self.threads = params.pop("threads", self.threads)
        self._set(params)
        return self

    def __repr__(self) -> str:
        given = {"category": self.category, **self._options}
        if self.category == DEFAULT_CATEGORY:
            del given["category"]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def fit(
        self,
        images: str | os.PathLike[str] | Sequence[ImageLike],
        y: None = None,
        *,
        others: Mapping[str, str | os.PathLike[str] | Sequence[ImageLike]] | None = None,
    ) -> Estimator:
        """Learn from good images: a folder of them, or as many images as `predict` takes.

        ``y`` is for scikit-learn, and ignored. ``others`` are good images of other products, by category, for methods
        that learn from those first. Returns the estimator itself. UsageError if an option is wrong, or nothing can be
        learnt from the images.
        """
        from mvad.in_process.fitting import fit_images

        options = build(EstimatorOptions, {**self._options, "method": self.method})
        other_images = {name: _listed(several) for name, several in (others or {}).items()}
        fitted = fit_images(_listed(images), self.category, options, other_images)
        self.model_, self.errors_ = Model(fitted.model, fitted.network, options, self.threads), fitted.errors
        return self

    def _fitted(self) -> Model:
        if not hasattr(self, "model_"):
            raise UsageError(f"this {type(self).__name__} has not learnt anything yet; call fit first.")
        return self.model_

    def predict(self, images: Any, *, maps: bool = True) -> Prediction | list[Prediction]:
        """Score images: see `Model.predict`. UsageError before `fit`."""
        return self._fitted().predict(images, maps=maps)

    def decision_function(self, images: Sequence[ImageLike]) -> NDArray[np.float64]:
        """Scores of images, (n,), higher for more abnormal ones; NaN for those that cannot be used."""
        predictions = self._fitted().predict(as_list(images), maps=False)
        return np.array([np.nan if one.score is None else one.score for one in predictions])

    def save(self, folder: str | os.PathLike[str]) -> str:
        """Write the model below a folder of models, for every command: see `Model.save`. UsageError before `fit`."""
        return self._fitted().save(folder)


def _listed(images: Any) -> list[ImageLike]:
    """The images themselves, or those of a folder, in the order of their names; UsageError if there are none."""
    if not isinstance(images, str | os.PathLike):
        found = as_list(images)
        if not found:
            raise UsageError("there are no images to learn from; give some good ones.")
        return found
    folder = storage.to_uri(os.fspath(images))
    files = find_images(storage.list_files(folder)).images
    if not files:
        raise UsageError(f"there are no images in {storage.readable(folder)}; give a folder of good ones.")
    return [file.uri for file in sorted(files, key=lambda file: file.path)]


class PatchCore(Estimator):
    method = "patchcore"


class Subspace(Estimator):
    method = "subspace"


class KNN(Estimator):
    method = "knn"


class ViTKNN(Estimator):
    method = "vit-knn"


class Autoencoder(Estimator):
    method = "autoencoder"


class FeatureAutoencoder(Estimator):
    method = "feature-autoencoder"


class VAE(Estimator):
    method = "vae"


class VAEFewShot(Estimator):
    method = "vae-fewshot"
