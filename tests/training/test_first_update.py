"""The first update of a rollout batch is on-policy to the bit, in any dtype and whichever rows skip the network."""

import pyarrow.parquet as pq
import pytest
from runs import metrics, settings

from gspo.training.run import start


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_ratio_is_one_in_bf16_with_rows_that_skip(tmp_path, layout):
    overrides = (("dtype", "bfloat16"), ("old_logprobs", "policy"), ("layout", layout), ("prompts_per_step", 8))
    run = start(settings(tmp_path / "run", *overrides, ("sampling.max_completion_tokens", 3)))
    lines = metrics(run.folder)[1:]
    assert any(0 < line["updates/rows_share"] < 1 for line in lines)
    assert all(line.get("clip_ratio/update_0", 0.0) == 0.0 for line in lines)
    for file in sorted((run.folder / "ledger").iterdir()):
        first = [row for row in pq.read_table(file).to_pylist() if row["update"] == 0 and not row["skipped"]]
        assert all(row["log_ratio"] == 0.0 for row in first)
