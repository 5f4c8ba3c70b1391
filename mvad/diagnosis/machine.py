"""The cores, the memory and the GPUs that jobs on this machine have."""

import math
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from mvad.diagnosis.finding import Finding, gib
from mvad.diagnosis.limits import ROOT, core_limit, memory_limit
from mvad.options import DoctorOptions
from mvad.runtime.threads import usable_cores

FEW_CORES = 2
CORES_PER_ACTOR = 4
PROCESS_LIMIT = 2 << 30  # bytes of the driver and of each actor, the default of --memory-limit
SHARED_MEMORY = "/dev/shm"
OBJECT_STORE_SHARE, MAX_SLOW_STORE = 0.3, 10**10  # of memory; bytes: of what Ray keeps in files if it has to


def cores(options: DoctorOptions) -> Iterator[Finding]:
    """How many cores there are, and whether a container has fewer."""
    limit = core_limit()
    count = usable_cores() if limit is None else min(limit, usable_cores())
    there = os.cpu_count() or 1
    text = f"{count:g}" if count == there else f"{count:g} of {there} (cgroup or affinity)"
    if count < FEW_CORES:
        yield Finding(
            "cores",
            text,
            "slow",
            "a single core reads, infers and writes by turns, and two do these side by side; give a container more",
        )
    else:
        yield Finding("cores", text)


def _memory() -> Any:
    import psutil  # which does not exist for every system

    return psutil.virtual_memory()


def memory(options: DoctorOptions) -> Iterator[Finding]:
    """How much memory there is, and whether a job with its default limits fits into it."""
    machine, limit = _memory(), memory_limit()
    size = machine.total if limit is None else min(machine.total, limit)
    text = f"{gib(size)}, {gib(min(machine.available, size))} free"
    text += f" (a cgroup's limit; the machine has {gib(machine.total)})" if size < machine.total else ""
    processes = 1 + math.ceil(usable_cores() / CORES_PER_ACTOR)
    if size < processes * PROCESS_LIMIT:
        advice = (
            f"a job here has {processes} processes of up to {gib(PROCESS_LIMIT)}, which is more than there is, and the "
            "kernel may end them; give jobs --memory-limit 1GiB --actors 1"
        )
        yield Finding("memory", text, "slow", advice)
    else:
        yield Finding("memory", text)


def shared_memory(options: DoctorOptions) -> Iterator[Finding]:
    """Whether Ray can keep images in shared memory."""
    if sys.platform != "linux":
        return
    if not os.access(SHARED_MEMORY, os.W_OK):
        advice = "Ray keeps images in files of the temporary folder, which is slower; make it writable"
        yield Finding(SHARED_MEMORY, "cannot be written", "slow", advice)
        return
    free, limit = shutil.disk_usage(SHARED_MEMORY).free, memory_limit()
    size = _memory().total
    store = OBJECT_STORE_SHARE * (size if limit is None else min(size, limit))
    if free < min(store, MAX_SLOW_STORE):
        advice = (
            f"Ray's store takes {gib(store)} and goes into files of the temporary folder, which is slower; give a "
            f"container --shm-size={math.ceil(1.1 * store / (1 << 30))}g"
        )
        yield Finding(SHARED_MEMORY, f"{gib(free)} free", "slow", advice)
    else:
        yield Finding(SHARED_MEMORY, f"{gib(free)} free")


def gpu(options: DoctorOptions) -> Iterator[Finding]:
    """The GPUs that PyTorch sees, or why it does not see one."""
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        yield Finding("GPU", ", ".join(f"{each.name} ({gib(each.total_memory)})" for each in found))
    elif not (ROOT / "proc/driver/nvidia/version").exists():
        yield Finding("GPU", "none")
    elif torch.version.cuda is None:
        advice = "this PyTorch is a build for CPUs; install one with CUDA from https://pytorch.org"
        yield Finding("GPU", "not used", "slow", advice)
    else:
        advice = f"PyTorch for CUDA {torch.version.cuda} cannot use the GPU; its driver may be too old, see nvidia-smi"
        yield Finding("GPU", "not used", "slow", advice)
