"""Damage the files of a model, and give it the right hashes again."""

import hashlib
import io
import json

import numpy as np


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def spoilt(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array


def seal(folder, document=None):
    """Write ``model.json`` again, with the right hashes, size and id."""
    content = json.loads((folder / "model.json").read_text()) if document is None else document
    files = content.get("files")
    if isinstance(files, dict):
        present = [name for name in files if (folder / name).is_file()]
        files |= {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in present}
        if isinstance(content.get("record"), dict) and content["record"].get("bytes") == -2:
            content["record"]["bytes"] = sum((folder / name).stat().st_size for name in present)
    signed = {name: value for name, value in content.items() if name not in ("model_id", "record")}
    content["model_id"] = hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
    (folder / "model.json").write_text(json.dumps(content))


def seal_files(folder):
    document = json.loads((folder / "model.json").read_text())
    document["record"]["bytes"] = -2  # filled in
    seal(folder, document)
