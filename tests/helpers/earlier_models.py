"""Write small models, features and their scores with the code of an earlier commit, to be read ever after.

In a worktree of that commit:  PYTHONPATH=. python .../tests/helpers/earlier_models.py .../tests/earlier_models/COMMIT

``FOLDER/models`` has a model per method; ``FOLDER/METHOD.npz`` has features of images, and the image scores that the
code of that commit gave them, as `read_model` and `from_state` brought the model back.
"""

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.detectors import METHODS
from mvad.features.backbone_spec import BackboneSpec
from mvad.model_store import FittedModel, save_model

SHAPES = {"patchcore": (4, 4, 8), "knn": (16,), "feature-autoencoder": (8, 8, 12)}  # of the features of one image
PARAMS = {"patchcore": {"coreset_ratio": 0.2}, "knn": {"neighbours": 2}, "feature-autoencoder": {"epochs": 2}}
SPEC = BackboneSpec("efficientnet_lite0", (2, 3, 4), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RECORD = {"n_train": 6, "errors": [], "fit_seconds": 1.0}


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    for method, shape in SHAPES.items():
        random = np.random.default_rng(7)
        train, test = (random.standard_normal((n, *shape)).astype(np.float32) for n in (6, 5))
        detector = METHODS[method](seed=3, **PARAMS[method]).fit(torch.from_numpy(train))
        scores = detector.score(torch.from_numpy(test)).image
        size = ImageSize.square(64)
        model = FittedModel("cap", METHODS[method], detector.state, SPEC, "abc", size, RECORD, np.sort(scores))
        names = {field.name for field in fields(FittedModel)}
        later = {"map_peaks": np.sort(scores), "patch_sample": np.stack([scores, scores], axis=1)}
        for name in names & later.keys():
            object.__setattr__(model, name, later[name])
        save_model(storage.to_uri(folder / "models"), model)
        np.savez_compressed(folder / f"{method}.npz", features=test, scores=scores)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
