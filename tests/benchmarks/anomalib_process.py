"""Fit and score with anomalib's PatchCore, timed; run by the Python of anomalib's own environment, without mvad.

One JSON object is read from standard input and one line of JSON written to standard output::

    {"backbone": a timm model, "state": .pth file, "mean", "std", "layers", "side", "ratio", "threads",
     "train": folder of good images or null, "bank": .npy file of a bank to use instead or null,
     "score": folder of images to score, "repeats": how often}
"""

import json
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import Compose, Normalize, Resize


def build(given: dict) -> Patchcore:
    """Its model with our weights and geometry, and nothing switched on that writes pictures or computes metrics."""
    side = (given["side"], given["side"])
    transform = Compose([Resize(side, antialias=True), Normalize(mean=given["mean"], std=given["std"])])
    model = Patchcore(
        backbone=given["backbone"],
        pre_trained=False,
        layers=given["layers"],
        coreset_sampling_ratio=given["ratio"],
        pre_processor=PreProcessor(transform=transform),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    extractor = model.model.feature_extractor.feature_extractor
    state = torch.load(given["state"], weights_only=True)
    own = extractor.state_dict()
    extractor.load_state_dict({name: state[name] for name in own if name in state})
    return model


def main() -> None:
    warnings.filterwarnings("ignore")
    given = json.loads(sys.stdin.read())
    torch.set_num_threads(given["threads"])
    found: dict = {"versions": {"torch": torch.__version__}, "fit_seconds": None}
    with tempfile.TemporaryDirectory() as scratch:
        model, engine = (
            build(given),
            Engine(default_root_dir=scratch, logger=False, enable_progress_bar=False, enable_model_summary=False),
        )
        with torch.inference_mode():
            for _ in range(3):
                model.model.feature_extractor(torch.rand(4, 3, given["side"], given["side"]))
        if given["train"]:
            data = Folder(
                name="benchmark",
                normal_dir=given["train"],
                train_batch_size=32,
                num_workers=given["threads"],
                val_split_mode="none",
                test_split_mode="none",
            )
            data.setup()
            started = time.perf_counter()
            engine.fit(model=model, train_dataloaders=data.train_dataloader())
            found["fit_seconds"] = time.perf_counter() - started
        else:
            model.model.memory_bank = torch.from_numpy(np.load(given["bank"]))
        found["bank"] = len(model.model.memory_bank)
        seconds = []
        for _ in range(given["repeats"] + 1):  # the first is a warm-up
            started = time.perf_counter()
            predictions = engine.predict(model=model, data_path=given["score"], return_predictions=True)
            seconds.append(time.perf_counter() - started)
        found["score_seconds"] = seconds[1:] or seconds
        found["scores"] = {
            str(path): float(score)
            for batch in predictions
            for path, score in zip(batch.image_path, batch.pred_score.flatten(), strict=True)
        }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
