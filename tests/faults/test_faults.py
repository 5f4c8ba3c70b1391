"""A short form of ``make faults``: the driver is killed once, and a scoring actor."""

import shutil

from helpers.harness import Running, campaign


def test_rows_after_kills_are_those_of_an_undisturbed_run(base_run, tiles, tmp_path):
    shutil.copytree(tiles / "alpha/test", tmp_path / "dump/alpha")
    (tmp_path / "dump/alpha/broken.png").write_bytes(b"")
    targets = ("driver", "actor")
    models = base_run[0] / "models"
    options = ("--engine", "torch")  # each run would export the network to ONNX again, which takes seconds
    tally = campaign(
        tmp_path, tmp_path / "dump", models, kills=2, seed=1, targets=targets, running=Running(), options=options
    )
    assert dict(tally.kills) == {"driver": 1, "actor": 1}
    assert tally.finished >= 1
    assert tally.faults == []
