"""Threads of the numerical libraries."""

from __future__ import annotations

import faiss
import torch


def use_one_thread() -> None:
    """Keep the computations of the calling thread to that thread: with more threads, sums are rounded differently."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
