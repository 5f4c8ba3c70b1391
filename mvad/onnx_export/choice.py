"""Which model is to be exported, with its backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvad import storage
from mvad.errors import UsageError
from mvad.model_store import ModelInfo, ModelSet, find_models, load_networks, models_for, read_fitted, read_model
from mvad.options import ExportOptions, PredictOptions, option_names

if TYPE_CHECKING:
    from mvad.features.weights import Network
    from mvad.in_process import Model


def choose_model(folder: str, options: ExportOptions) -> tuple[ModelInfo, Network]:
    """The model in ``folder`` (a URI), or that of a category below it, and its network.

    UsageError if there is none, there are several to choose from, or it cannot be used.
    """
    if storage.exists(storage.join(folder, "model.json")):
        model = read_model(folder)
        for option, wanted, found in (
            ("category", options.category, model.category),
            ("method", options.method, model.method),
        ):
            if wanted not in (None, found):
                raise UsageError(f"{storage.readable(folder)} is a model of the {option} {found!r}, not {wanted!r}.")
        models = ModelSet(folder, {model.category: model}, {}, {})
    else:
        models = find_models(folder, options.method)
        if options.category is not None:
            models = models_for([options.category], models)
        elif len(models) > 1:
            names = ", ".join(sorted(models)[:20])
            raise UsageError(f"{storage.readable(folder)} holds several models; choose one with --category: {names}.")
    models, networks = load_networks(models, options.weights)
    (model,) = models.values()
    return model, networks[model.backbone]


def original_model(model: ModelInfo, network: Network, options: ExportOptions) -> Model:
    """The model as it scores in mvad, deciding by the same options."""
    from mvad.in_process import Model

    shared = option_names(PredictOptions) & option_names(ExportOptions)
    decides = PredictOptions(**{name: getattr(options, name) for name in shared})
    return Model(read_fitted(model), network, decides, known_id=model.model_id)
