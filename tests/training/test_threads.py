"""How many threads a run gets: by the model's size, the cores there are, and whether they are free."""

import pytest
import torch

from gspo.threads import SMALL, available_cores, burst, choose_threads

LARGE = int(SMALL) * 10


def took(**seconds):
    return lambda number: seconds[f"t{number}"]


def test_small_models_get_one_thread_and_nothing_is_timed():
    chosen = choose_threads(0, 1000, cores=8, seconds=lambda number: pytest.fail("timed"))
    assert (chosen.number, str(chosen)) == (1, "1 thread (a small model)")


def test_free_cores_are_used_and_the_gain_is_said():
    chosen = choose_threads(0, LARGE, cores=4, seconds=took(t1=1.0, t4=0.4))
    assert (chosen.number, str(chosen)) == (4, "4 threads (2.5x as fast as one)")


def test_cores_that_another_process_holds_are_not():
    chosen = choose_threads(0, LARGE, cores=4, seconds=took(t1=1.0, t4=12.0))
    assert chosen.number == 1
    assert "4 threads took 12.0x the time of one" in chosen.why


def test_the_setting_wins_and_too_many_are_named():
    assert choose_threads(2, LARGE, cores=4).why == "as set"
    assert "on 4 cores" in choose_threads(9, LARGE, cores=4).why
    assert choose_threads(9, LARGE, cores=4).number == 9


def test_a_containers_quota_bounds_the_cores(tmp_path):
    quota = tmp_path / "cpu.max"
    free = available_cores(tmp_path / "none")
    for text, cores in (("max 100000", free), ("100000 100000", 1), ("50000 100000", 1), (f"{10**9} 100000", free)):
        quota.write_text(text)
        assert available_cores(quota) == cores


def test_the_burst_leaves_the_threads_as_they_were():
    before = torch.get_num_threads()
    assert burst(1) > 0
    assert torch.get_num_threads() == before
