"""A run's memory: how much at most, and that it does not grow from epoch to epoch."""

import ctypes

import numpy as np
import pytest
from conftest import done, memory

import cgan
from support.runs.run import Run

BATCH = 64 * 32 * 32 * 4  # bytes of a batch of images
# glibc keeps freed blocks, by thresholds that it moves; with fixed ones it gives large blocks back at once (mallopt(3))
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
PR_SET_THP_DISABLE = 41  # prctl(2)


def train_watched(folder):
    """Trains 60 short epochs; prints the resident memory after each, in bytes, and the largest."""
    end_epoch = Run.end_epoch

    def end_watched(run, due):
        end_epoch(run, due)
        print("resident", memory("RssAnon"))  # without the pages of files, which the machine takes back at times

    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # large pages come and go with the machine's other work
    Run.end_epoch = end_watched
    cgan.train(cgan.parse_flags(["--n_epochs", "60", "--max_batches", "20", "--output_dir", folder]))
    print("peak", memory("VmHWM"))


@pytest.mark.slow
def test_memory(tmp_path):
    """Peak below 0.65 GB; an epoch keeps nothing, not even a single batch of images.

    The slope is the median of those between epochs that are 10 apart: an evaluation lies in each of them, and what the
    allocator takes once counts in few. The first 20 are left out: their evaluations load a classifier and its features.
    """
    process = done(train_watched, tmp_path, cwd=tmp_path, **GIVE_BACK)
    values = [line.split() for line in process.stdout.splitlines() if line.startswith(("resident", "peak"))]
    *resident, peak = (int(value) for _, value in values)
    assert len(resident) == 60 and peak < 0.65e9
    assert np.median(np.subtract(resident[30:], resident[20:-10]) / 10) < BATCH, resident
