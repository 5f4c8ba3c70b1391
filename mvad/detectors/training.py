"""How networks are trained on good images: Adam, early stopping on images held out, all from one seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

HELD_OUT = 0.1  # share of the images
LEAST_IMAGES = 5  # below that none is held out, and the training loss decides
PATIENCE = 5  # epochs without progress
STEPS = 32  # an epoch at least, if that leaves SMALL_BATCH rows for each
SMALL_BATCH = 32
PROGRESS = 1e-3  # relative fall of the loss that counts

Network = TypeVar("Network", bound=nn.Module)
Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Plan:
    """How to train.

    Attributes
    ----------
    epochs
        At most; the learning rate falls to nothing over them, along a cosine.
    batch_size
        Rows a step at most; fewer where there are few rows, so that an epoch has steps enough to learn in.
    copies
        Images that are one training image and its variants; they are held out together.
    epoch_rows
        Rows an epoch at most, drawn anew each time; what is left over waits for another epoch.
    """

    epochs: int
    learning_rate: float
    seed: int
    batch_size: int
    copies: int = 1
    epoch_rows: int = 131_072


class History(NamedTuple):
    """Epochs run, and the best loss on held-out images."""

    epochs: int
    loss: float


def split(images: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Images to train on, and images held out: (n, ...) each; the latter are the former where there are too few."""
    originals = len(images) // plan.copies
    if originals < LEAST_IMAGES:
        return images, images
    order = torch.randperm(originals, generator=torch.Generator().manual_seed(plan.seed))
    count = max(1, round(HELD_OUT * originals))
    rows = (order[:, None] * plan.copies + torch.arange(plan.copies)).to(images.device)
    return images[rows[count:].ravel()], images[rows[:count].ravel()]


def seeded(build: Callable[[], Network], seed: int) -> Network:
    """A new network whose first weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train(network: nn.Module, rows: Tensor, held_out: Tensor, loss: Loss, plan: Plan) -> History:
    """Train in place, and leave the network with the weights that did best on the rows held out.

    Parameters
    ----------
    rows, held_out : (n, ...) float32, of one shape but for n
    loss
        Of the network and some rows, a mean over them; its generator is for noise.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.epochs)
    generator = torch.Generator().manual_seed(plan.seed)
    batch_size = min(plan.batch_size, max(SMALL_BATCH, len(rows) // STEPS))
    best, state, stale, epochs = float("inf"), copy.deepcopy(network.state_dict()), 0, 0
    while epochs < plan.epochs and stale < PATIENCE:
        epochs += 1
        network.train()
        for chosen in torch.randperm(len(rows), generator=generator)[: plan.epoch_rows].split(batch_size):
            optimiser.zero_grad()
            loss(network, rows[chosen], generator).backward()
            optimiser.step()
        schedule.step()
        found = _mean_loss(network, held_out, loss, plan)
        if found < best - PROGRESS * abs(best) or best == float("inf"):
            best, state, stale = found, copy.deepcopy(network.state_dict()), 0
        else:
            stale += 1
    network.load_state_dict(state)
    network.eval().requires_grad_(False)
    return History(epochs, best)


@torch.no_grad()
def _mean_loss(network: nn.Module, rows: Tensor, loss: Loss, plan: Plan) -> float:
    network.eval()
    generator = torch.Generator().manual_seed(plan.seed)  # the same noise every time, so that epochs compare
    parts = rows[: plan.epoch_rows].split(plan.batch_size)
    total = sum(float(loss(network, part, generator)) * len(part) for part in parts)
    return total / sum(len(part) for part in parts)
