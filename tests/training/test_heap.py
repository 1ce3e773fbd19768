"""The heap gives back what is freed, for models large enough that page faults do not matter."""

import subprocess
import sys

import pytest

from gspo.heap import returns_blocks
from gspo.threads import SMALL

SCRIPT = """
import sys, torch
from gspo.heap import return_blocks
if sys.argv[1] == "tidy":
    return_blocks()

def resident():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmRSS:"))

warm = [torch.ones(2**22) for _ in range(4)]  # 16 MiB each: glibc learns to keep such blocks
del warm
before = resident()
blocks, pins = [], []
for _ in range(16):
    blocks.append(torch.ones(2**22))
    pins.append(torch.ones(2**12))  # small ones between them hold the heap's end up
del blocks
print(resident() - before)
"""


def kept(how):
    run = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
    return int(run.stdout) / 1024


@pytest.mark.skipif(not returns_blocks(int(SMALL)), reason="glibc's")
def test_freed_blocks_go_back_to_the_system():
    assert kept("tidy") < 20 < 100 < kept("as it comes")


def test_small_models_keep_their_blocks():
    assert not returns_blocks(int(SMALL) - 1)
