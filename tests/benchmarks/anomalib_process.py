"""Time fitting and scoring with anomalib's PatchCore; runs in anomalib's own environment, without mvad.

Reads one JSON object from standard input and writes one line of JSON to standard output::

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


def build(task: dict) -> Patchcore:
    """Build anomalib's model with mvad's weights and image size; it writes no pictures and computes no metrics."""
    side = (task["side"], task["side"])
    transform = Compose([Resize(side, antialias=True), Normalize(mean=task["mean"], std=task["std"])])
    model = Patchcore(
        backbone=task["backbone"],
        pre_trained=False,
        layers=task["layers"],
        coreset_sampling_ratio=task["ratio"],
        pre_processor=PreProcessor(transform=transform),
        post_processor=False,
        evaluator=False,
        visualizer=False,
    )
    extractor = model.model.feature_extractor.feature_extractor
    state = torch.load(task["state"], weights_only=True)
    extractor.load_state_dict({name: state[name] for name in extractor.state_dict() if name in state})
    return model


def main() -> None:
    warnings.filterwarnings("ignore")
    task = json.loads(sys.stdin.read())
    torch.set_num_threads(task["threads"])
    answer: dict = {"versions": {"torch": torch.__version__}, "fit_seconds": None}
    with tempfile.TemporaryDirectory() as scratch:
        model, engine = (
            build(task),
            Engine(default_root_dir=scratch, logger=False, enable_progress_bar=False, enable_model_summary=False),
        )
        with torch.inference_mode():
            for _ in range(3):
                model.model.feature_extractor(torch.rand(4, 3, task["side"], task["side"]))
        if task["train"]:
            data = Folder(
                name="benchmark",
                normal_dir=task["train"],
                train_batch_size=32,
                num_workers=task["threads"],
                val_split_mode="none",
                test_split_mode="none",
            )
            data.setup()
            started = time.perf_counter()
            engine.fit(model=model, train_dataloaders=data.train_dataloader())
            answer["fit_seconds"] = time.perf_counter() - started
        else:
            model.model.memory_bank = torch.from_numpy(np.load(task["bank"]))
        answer["bank"] = len(model.model.memory_bank)
        seconds = []
        for _ in range(task["repeats"] + 1):  # the first is a warm-up
            started = time.perf_counter()
            predictions = engine.predict(model=model, data_path=task["score"], return_predictions=True)
            seconds.append(time.perf_counter() - started)
        answer["score_seconds"] = seconds[1:] or seconds
        answer["scores"] = {
            str(path): float(score)
            for batch in predictions
            for path, score in zip(batch.image_path, batch.pred_score.flatten(), strict=True)
        }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
