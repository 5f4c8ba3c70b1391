"""Weights for backbones whose published ones cannot be had."""

import safetensors.torch
import torch
import torchvision


def random_weights(name, path, seed=0):
    """A seeded random state dict of a torchvision model, saved to ``path``."""
    torch.manual_seed(seed)
    state = torchvision.models.get_model(name, weights=None).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state
