"""The versions of fitted models: which there are, and which is in use."""

from __future__ import annotations

from typing import Any

from mvad import storage
from mvad.errors import UsageError
from mvad.model_store import ModelInfo, find_models, kept_versions, use_version


def list_versions(folder: str, method: str | None = None, category: str | None = None) -> list[dict[str, Any]]:
    """One row per version of each model below the URI ``folder``, the oldest of a category first.

    UsageError if there are no models, those of several methods and no ``method``, or none of the ``category``.
    """
    models = find_models(folder, method)
    names = list(models) if category is None else [_model_of(folder, category, method).category]
    rows = []
    for name in names:
        used = models[name]
        for version in versions_of(folder, used):
            rows.append(_row(version, in_use=version.model_id == used.model_id))
    return rows


def versions_of(folder: str, used: ModelInfo) -> list[ModelInfo]:
    """The model in use and the versions that are kept, each once, in the order that they learnt from each other."""
    versions = {version.model_id: version for version in kept_versions(folder, used.method, used.category)}
    versions.setdefault(used.model_id, used)
    return sorted(
        versions.values(), key=lambda one: (len(_earlier(one)), one.record.get("saved_at") or "", one.model_id)
    )


def roll_back(folder: str, category: str, method: str | None = None, to: str | None = None) -> tuple[str, ModelInfo]:
    """Put the version before back in use, or the one whose id begins with ``to``; returns the id before, and the model.

    Nothing is deleted. UsageError if there is no such model or version, or there are several; ModelError if the
    version is damaged: then nothing has changed.
    """
    used = _model_of(folder, category, method)
    versions = versions_of(folder, used)
    chosen = _version_before(used, versions) if to is None else _version_of(used, versions, to)
    return used.model_id, use_version(folder, chosen)


def _model_of(folder: str, category: str, method: str | None) -> ModelInfo:
    models = find_models(folder, method)
    if category in models:
        return models[category]
    error = models.errors.get(storage.folder_name(category))
    if error is not None:
        raise error
    known = ", ".join(sorted(models))
    raise UsageError(f"{storage.readable(folder)} has no model of {category!r}; it has models of: {known}.")


def _version_before(used: ModelInfo, versions: list[ModelInfo]) -> ModelInfo:
    earlier = _earlier(used)
    if not earlier:
        raise UsageError(f"the model of {used.category!r} has no earlier version; name one of its versions with --to.")
    for version in versions:
        if version.model_id == earlier[-1]:
            return version
    raise UsageError(
        f"the version before the model of {used.category!r} ({short(earlier[-1])}) is not kept, or damaged; name one "
        "of its versions with --to."
    )


def _version_of(used: ModelInfo, versions: list[ModelInfo], to: str) -> ModelInfo:
    found = [version for version in versions if to and version.model_id.startswith(to)]
    known = ", ".join(short(version.model_id) for version in versions)
    if not found:
        raise UsageError(f"the model of {used.category!r} has no version {to!r}; it has: {known}.")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} versions of the model of {used.category!r} begin with {to!r}; give more of: {known}."
        )
    if found[0].model_id == used.model_id:
        raise UsageError(f"the version {short(used.model_id)} of the model of {used.category!r} is in use already.")
    return found[0]


def short(model_id: str) -> str:
    """A model's id as people see it."""
    return model_id[:12]


def _earlier(model: ModelInfo) -> list[str]:
    return list(model.record.get("updated_from", []))


def _row(version: ModelInfo, *, in_use: bool) -> dict[str, Any]:
    record = version.record
    return {
        "method": version.method,
        "category": version.category,
        "model_id": version.model_id,
        "in_use": in_use,
        "saved_at": record.get("saved_at"),
        "made_by": record.get("made_by") or ("update" if _earlier(version) else "fit"),
        "n_train": record["n_train"],
        "n_reviewed": len(record.get("reviewed", [])),
        "updated_from": next(reversed(_earlier(version)), None),
    }
