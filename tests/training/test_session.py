import subprocess
import sys

import pytest

from assay.training.session import keep_freed_memory

FAULTS_OF_ACTIVATIONS = """
import resource
import torch
from assay.training.session import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    return [torch.ones(2_000_000) for _ in range(4)]

keep_freed_memory()
keep_freed_memory()  # again and again, as each run of a process does
step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def test_activations_of_the_next_step_fault_no_pages_in() -> None:
    if not keep_freed_memory():
        pytest.skip("another C library than glibc")
    done = subprocess.run([sys.executable, "-c", FAULTS_OF_ACTIVATIONS], capture_output=True, text=True, check=True)
    touched = 10 * 4 * 8_000_000 / 4096
    assert int(done.stdout) < touched / 100
