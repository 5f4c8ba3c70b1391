"""How networks are trained on good images: Adam, with early stopping on held-out images, all from one seed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

HELD_OUT_SHARE = 0.1
MIN_IMAGES = 5  # with fewer images none is held out, and the training loss decides when to stop
PATIENCE_EPOCHS = 5
MIN_STEPS_PER_EPOCH = 32  # unless batches would get smaller than MIN_BATCH_SIZE
MIN_BATCH_SIZE = 32
MIN_IMPROVEMENT = 1e-3  # of the loss, relative to it

NetworkT = TypeVar("NetworkT", bound=nn.Module)
Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]  # mean over some rows; the generator is for noise


@dataclass(frozen=True)
class TrainingPlan:
    """How to train."""

    epochs: int  # maximum; the learning rate falls to zero over them, along a cosine
    learning_rate: float
    seed: int
    batch_size: int  # maximum; smaller where there are few rows, so that an epoch has enough steps to learn in
    copies: int = 1  # rows per training image, which are held out together: the image and its variants
    epoch_rows: int = 131_072  # maximum, drawn again for each epoch


class History(NamedTuple):
    """Epochs run, and the best loss on held-out images."""

    epochs: int
    loss: float


def split(images: Tensor, plan: TrainingPlan) -> tuple[Tensor, Tensor]:
    """Split images into those to train on and those held out, (n, ...) each; both are all images if there are few."""
    originals = len(images) // plan.copies
    if originals < MIN_IMAGES:
        return images, images
    order = torch.randperm(originals, generator=torch.Generator().manual_seed(plan.seed))
    count = max(1, round(HELD_OUT_SHARE * originals))
    rows = (order[:, None] * plan.copies + torch.arange(plan.copies)).to(images.device)
    return images[rows[count:].ravel()], images[rows[:count].ravel()]


def seeded(build: Callable[[], NetworkT], seed: int) -> NetworkT:
    """Build a network whose initial weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mean_output(network: nn.Module, rows: Tensor, generator: torch.Generator) -> Tensor:
    """The loss of a network whose output is the loss of each row."""
    return network(rows).mean()


def train(network: nn.Module, rows: Tensor, held_out: Tensor, loss: Loss, plan: TrainingPlan) -> History:
    """Train in place on (n, ...) float32 rows; the network ends with the weights that did best on those held out."""
    optimiser = torch.optim.Adam(network.parameters(), lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.epochs)
    generator = torch.Generator().manual_seed(plan.seed)
    batch_size = min(plan.batch_size, max(MIN_BATCH_SIZE, len(rows) // MIN_STEPS_PER_EPOCH))
    best_loss, best_weights = float("inf"), copy.deepcopy(network.state_dict())
    epochs = epochs_without_improvement = 0
    while epochs < plan.epochs and epochs_without_improvement < PATIENCE_EPOCHS:
        epochs += 1
        network.train()
        for batch in torch.randperm(len(rows), generator=generator)[: plan.epoch_rows].split(batch_size):
            optimiser.zero_grad()
            loss(network, rows[batch], generator).backward()
            optimiser.step()
        schedule.step()
        held_out_loss = _mean_loss(network, held_out, loss, plan)
        if held_out_loss < best_loss - MIN_IMPROVEMENT * abs(best_loss) or best_loss == float("inf"):
            best_loss, best_weights = held_out_loss, copy.deepcopy(network.state_dict())
            epochs_without_improvement = 0
        else:
            epochs_without_improvement += 1
    network.load_state_dict(best_weights)
    network.eval().requires_grad_(False)
    return History(epochs, best_loss)


@torch.no_grad()
def _mean_loss(network: nn.Module, rows: Tensor, loss: Loss, plan: TrainingPlan) -> float:
    network.eval()
    generator = torch.Generator().manual_seed(plan.seed)  # the same noise each time, so that epochs compare
    batches = rows[: plan.epoch_rows].split(plan.batch_size)
    total = sum(float(loss(network, batch, generator)) * len(batch) for batch in batches)
    return total / sum(len(batch) for batch in batches)
