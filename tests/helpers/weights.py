"""Weights for backbones whose published weights cannot be downloaded."""

import safetensors.torch
import torch
import torchvision


def random_weights(name, path, seed=0):
    """Save a seeded random state dict of a torchvision model to ``path``, and return it."""
    torch.manual_seed(seed)
    state = torchvision.models.get_model(name, weights=None).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state
