"""The settings of torch that a run computes under, put back afterwards; and where its random numbers start."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from assay.devices import Compute

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_LARGEST_HEAP_BLOCK_BYTES, _KEPT_BYTES, _HUGE_BYTES = 32 << 20, 1 << 30, 256 << 20
_DEFAULT_TOP_PAD_BYTES = 128 << 10
_MADV_HUGEPAGE, _HUGE_PAGE_BYTES = 14, 2 << 20

ORDER_STREAM, NOISE_STREAM, AUGMENTATION_STREAM, PRETRAINING_STREAM = range(4)


@contextmanager
def compute_session(compute: Compute) -> Iterator[None]:
    """Compute with the run's threads, deterministic algorithms and a random state of its own.

    Args:
        compute: Device, precision and threads.

    Yields:
        Nothing; on leaving, torch's threads, determinism and random state are what they were.
    """
    threads = torch.get_num_threads()
    # Not use_deterministic_algorithms: it imports the compiler (2 s) to set a flag there that only torch.compile reads.
    determinism = torch.get_deterministic_debug_mode()
    uninitialized: Any = torch.utils.deterministic
    fill = uninitialized.fill_uninitialized_memory
    keep_freed_memory()
    if compute.device == "cuda":
        # cuBLAS reads this when it starts; without it torch refuses matrix products in deterministic mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with _own_random_state(compute.device):
        try:
            torch.set_num_threads(compute.num_threads)
            torch.set_deterministic_debug_mode("error")
            # Filling every fresh tensor with NaN finds reads of stale memory; it costs a write of each activation.
            uninitialized.fill_uninitialized_memory = False
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_deterministic_debug_mode(determinism)
            uninitialized.fill_uninitialized_memory = fill


def keep_freed_memory() -> bool:
    """Have glibc keep what the process frees, up to 1 GiB, instead of giving it back and asking again.

    Activations are a few MB each, just where glibc maps fresh pages from the kernel for every one of them: thousands of
    page faults a step. The heap's next 256 MiB are asked to be pages of 2 MiB, as activations of 4 KiB pages miss the
    translation cache. The setting holds for the rest of the process.

    Returns:
        Whether the C library took the setting; others than glibc have nothing to set.

    Source:
        mallopt(3), M_MMAP_THRESHOLD (32 MiB is its maximum), M_TRIM_THRESHOLD and M_TOP_PAD; madvise(2), MADV_HUGEPAGE.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:
        return False
    taken = mallopt(_M_MMAP_THRESHOLD, _LARGEST_HEAP_BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    if taken:
        _ask_for_huge_pages(libc)
    return bool(taken)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Grow the heap and mark what is new; memory is used only when something is written there.

    A kernel that has no huge pages, or gives them to nobody, says no, and nothing is lost.
    """
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.mallopt(_M_TOP_PAD, _HUGE_BYTES)
    libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_LARGEST_HEAP_BLOCK_BYTES // 2))))
    libc.mallopt(_M_TOP_PAD, _DEFAULT_TOP_PAD_BYTES)
    end = libc.sbrk(ctypes.c_ssize_t(0)) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    libc.madvise(ctypes.c_void_p(end - _HUGE_BYTES), ctypes.c_size_t(_HUGE_BYTES), _MADV_HUGEPAGE)


def stream_seed(seed: int, stream: int, epoch: int = 0) -> int:
    """Return the seed of one stream of random numbers: independent for each run seed, purpose and epoch."""
    state = np.random.SeedSequence([seed, stream, epoch]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def batch_order(num_examples: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the order in which an epoch visits the train split, int64 ``[example]``.

    It depends on the seed and the epoch alone, so runs that differ in anything else see the same batches.

    Args:
        num_examples: Examples of the train split.
        seed: Seed of the run.
        epoch: 0 for the first.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, ORDER_STREAM, epoch))
    return torch.randperm(num_examples, generator=generator)


def balanced_order(labels: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """Draw as many examples as there are, with replacement, each class equally likely, int64 ``[example]``.

    Args:
        labels: Classes of the train split, int64 ``[example]``.
        seed: Seed of the run.
        epoch: 0 for the first.
    """
    generator = torch.Generator().manual_seed(stream_seed(seed, ORDER_STREAM, epoch))
    counts = torch.bincount(labels)
    wanted = torch.randint(0, int((counts > 0).sum()), (len(labels),), generator=generator)
    classes = torch.nonzero(counts).flatten()[wanted]
    by_class = torch.argsort(labels, stable=True)
    first = torch.cumsum(counts, dim=0) - counts
    place = (torch.rand(len(labels), generator=generator, dtype=torch.float64) * counts[classes]).long()
    return by_class[first[classes] + place]


@contextmanager
def _own_random_state(device: str) -> Iterator[None]:
    if device == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        backend = getattr(torch, device)
        with torch.random.fork_rng(devices=[backend.current_device()], device_type=device):
            yield
