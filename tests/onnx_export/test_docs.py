"""The example in docs/export.md runs without mvad and prints mvad's scores."""

import re
import subprocess
import sys

import numpy as np
import pytest

import mvad
from helpers.exported import fit, tiles
from helpers.tiles import ROOT

MAX_LINES = 60
WITHOUT_MVAD = "import sys; sys.modules['mvad'] = sys.modules['torch'] = None\n"


def test_the_example_gives_the_scores_of_mvad(tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/export.md").read_text(), flags=re.S | re.M)
    assert len(example.splitlines()) <= MAX_LINES
    folder, file = fit("patchcore", tmp_path / "models"), tmp_path / "tile.onnx"
    mvad.export(folder, out=str(file), quiet=True)
    turned, clear = tmp_path / "turned.jpg", tmp_path / "clear.png"
    images = tiles(2, seed=4, defect=True)
    exif = images[0].getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    images[0].save(turned, exif=exif)
    images[1].putalpha(images[1].convert("L").point(lambda value: 255 * (value > 100)))
    images[1].save(clear)
    ended = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_MVAD + example, str(file), str(turned), str(clear)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    title, *lines = ended.stdout.splitlines()
    assert title == "tile: patchcore, 32 x 32 pixels"
    for line, expected in zip(lines, mvad.load_model(folder).predict([str(turned), str(clear)]), strict=True):
        assert float(re.search(r"score (\S+),", line)[1]) == pytest.approx(expected.score, rel=1e-5)
        assert (", anomalous," in line) == expected.is_anomaly


def test_openvino_runs_the_file(tmp_path):
    openvino = pytest.importorskip("openvino")
    folder, file = fit("patchcore", tmp_path / "models"), tmp_path / "tile.onnx"
    mvad.export(folder, out=str(file), quiet=True)
    run = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for image in tiles(4):
        expected = mvad.load_model(folder).predict(image)
        outputs = run({"image": np.asarray(image)})
        assert float(outputs["score"]) == pytest.approx(expected.score, rel=2e-3)
        assert outputs["anomaly_map"].shape == expected.anomaly_map.shape
