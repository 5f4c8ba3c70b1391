"""How many images an actor scores at a time."""

from types import SimpleNamespace

from mvad.data.image_size import ImageSize
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.options import ScoreOptions
from mvad.scoring.score import BackboneGroup


def test_the_memory_limit_makes_batches_smaller_on_cpus_but_not_on_gpus():
    network = Network.load(describe("efficientnet_lite0"), None)
    record = {"feature_shape": (56, 56, 152)}
    job = SimpleNamespace(category="alpha", model=SimpleNamespace(bit_depth=16, method="patchcore", record=record))
    options = ScoreOptions(memory_limit="1100MiB")
    group = BackboneGroup([job], {0: job}, network, ImageSize.square(448), options)
    assert 1 <= group.batch_size(gpus=False) < options.batch_size
    assert group.batch_size(gpus=True) == options.batch_size == 32
