"""Small models fitted in this process, and what their ONNX files say of images."""

import warnings

import numpy as np
import onnxruntime
from PIL import Image

import mvad
from helpers.tiles import paint

METHODS = {
    "patchcore": mvad.PatchCore,
    "subspace": mvad.Subspace,
    "knn": mvad.KNN,
    "vit-knn": mvad.ViTKNN,
    "autoencoder": mvad.Autoencoder,
    "feature-autoencoder": mvad.FeatureAutoencoder,
    "vae": mvad.VAE,
    "vae-fewshot": mvad.VAEFewShot,
}
WITHOUT_BACKBONE = ("autoencoder", "vit-knn")  # of the options that tests give
TRAINED = ("autoencoder", "feature-autoencoder", "vae", "vae-fewshot")


def tiles(count, seed=0, defect=False):
    """Images of several sizes, some of them not square."""
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        pixels = paint(random, defect, side=80 + 8 * (number % 3))[0]
        images.append(Image.fromarray(pixels[: len(pixels) - 20 * (number % 2)]).convert("RGB"))
    return images


def fit(method, folder, **options):
    """Fit a method to a few tiles of 32 pixels; returns the folder of its model."""
    defaults = {"image_size": 32, "folds": 3, "category": "tile"}
    if method not in WITHOUT_BACKBONE:
        defaults["backbone"] = "efficientnet_lite0"
    if method in TRAINED:
        defaults["epochs"] = 2
    others = {"other": tiles(6, seed=9)} if method == "vae-fewshot" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few images that some are suspects
        return METHODS[method](**{**defaults, **options}, threads=1).fit(tiles(8), others=others).save(folder)


def run(file, image):
    """The outputs of an ONNX file for a PIL image, by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": np.asarray(image)}), strict=True))
