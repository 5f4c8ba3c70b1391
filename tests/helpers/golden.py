"""What every method gives on the generated sample, as it was once recorded: ``golden.npz``.

``python tests/golden.py`` compares, ``python tests/golden.py --record`` records anew. On the machine (processor and
package versions) that recorded, every bit must be the same; elsewhere rounding differs.
"""

import hashlib
import importlib.metadata
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

import mvad
from mvad import results
from mvad.runtime.session import ray_session
from mvad.storage import to_uri

FILE = Path(__file__).with_name("golden.npz")
METHODS = ("patchcore", "knn", "vit-knn", "autoencoder", "feature-autoencoder", "vae", "vae-fewshot")
OPTIONS = {"calibration": "folds", "image_size": 96, "limit": 6, "folds": 2, "epochs": 2, "maps": "all", "quiet": True}
PACKAGES = ("torch", "numpy", "scipy", "pillow", "onnxruntime", "faiss-cpu", "scikit-learn", "timm")
COLUMNS = ("image_id", "score", "p_value", "threshold", "is_anomaly")
ELSEWHERE = 1e-5  # relative
TRAINING = {"feature-autoencoder": 1e-2}  # training makes much of what rounding changes


def machine() -> str:
    """The processor and the versions of what computes."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        names = ("vendor_id", "cpu family", "model", "model name", "flags")
        processor = "; ".join(line[1] for name in names if (line := re.search(rf"^{name}\s*: (.*)$", text, re.M)))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    return "; ".join([processor, *versions])


def columns_of(method: str, out: str, names: Sequence[str] = COLUMNS) -> dict[str, np.ndarray]:
    """What is recorded of a run's rows, by ``<method>/<column>``."""
    rows = results.read_scores(to_uri(out), [*names, "patch_scores", "patch_grid"])
    found = {f"{method}/{name}": np.array(rows[name].to_pylist()) for name in names}
    parts = zip(rows["patch_scores"].to_pylist(), rows["patch_grid"].to_pylist(), strict=True)
    grids = [np.reshape(np.array(values, np.float32), shape) for values, shape in parts if values is not None]
    if grids:
        digest = hashlib.sha256(np.stack(grids).tobytes()).hexdigest()
        found |= {f"{method}/digest of all grids": np.array(digest), f"{method}/a grid": grids[len(grids) // 2]}
    return found


def compute() -> dict[str, np.ndarray]:
    """Scores, p-values, thresholds, verdicts and grids of each method."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, ray_session(None):
        data, weights = f"{folder}/data", f"{folder}/vit.safetensors"
        mvad.sample(data, quiet=True)
        torch.manual_seed(0)
        save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), weights)
        for method in METHODS:
            out = f"{folder}/{method}"
            network = {"backbone": "efficientnet_lite0"}
            if method == "vit-knn":
                network = {"backbone": "timm:vit_tiny_patch16_224", "weights": weights}
            mvad.run(data, out, method=method, actors=1, **network, **OPTIONS)
            found |= columns_of(method, out)
    return found


def differences(found: dict[str, np.ndarray]) -> list[str]:
    """What of ``found`` is not as it was recorded."""
    with np.load(FILE) as recorded:
        expected = dict(recorded)
    here = str(expected.pop("machine")) == machine()
    wrong = []
    for name in found:
        if here:
            same = np.array_equal(expected[name], found[name], equal_nan=expected[name].dtype.kind == "f")
        elif expected[name].dtype.kind == "f":
            same = np.allclose(
                expected[name], found[name], rtol=TRAINING.get(name.split("/")[0], ELSEWHERE), atol=0, equal_nan=True
            )
        else:
            same = name.endswith("grids") or np.array_equal(expected[name], found[name])
        if not same:
            wrong.append(f"{name} differs")
    return sorted(wrong)


if __name__ == "__main__":
    computed = compute()
    if sys.argv[1:] == ["--record"]:
        np.savez_compressed(FILE, **computed, machine=np.array(machine()))
    else:
        sys.exit("\n".join(differences(computed)) or 0)
