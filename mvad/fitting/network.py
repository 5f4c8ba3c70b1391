"""The network that a command's options ask for."""

from __future__ import annotations

from mvad.detectors import find_method
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.options import MethodOptions


def resolve_backbone(options: MethodOptions) -> BackboneSpec:
    """The backbone of a fit; UsageError if method, backbone and image size do not go together."""
    method = find_method(options.method)
    spec = describe(options.backbone or method.default_backbone)
    spec.check_size(options.size)
    if method.needs_transformer and spec.patch == 1:
        raise UsageError(f"--method {method.method} needs a Vision Transformer, and {spec.name} is not; see knn.")
    return spec


def load_network(options: MethodOptions) -> Network:
    """The backbone of a fit with its weights; UsageError if it cannot be had or memory cannot hold it."""
    network = Network.load(resolve_backbone(options), options.weights)
    options.budget.after_weights(network.nbytes)
    return network
