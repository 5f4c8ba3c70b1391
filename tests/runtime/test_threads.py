"""Where an actor computes, and with which precision."""

import torch

from mvad.runtime.threads import worker_device


def test_on_a_gpu_convolutions_are_deterministic_and_not_rounded_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert worker_device() == "cuda"
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32
