"""What two processes read of a checkpoint, counted while a tiny run resumes."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos  # 20 seconds; the parts of it have tests of their own


@pytest.fixture(scope="module")
def reads():
    """{(what, process): row}."""
    from resume_reads import measure

    rows = measure("now", Path(__file__).resolve().parents[2])
    return {(row["what"], row["process"]): row for row in rows}


def test_one_process_of_a_host_reads_each_group_and_the_other_the_codec_alone(reads):
    first, second = reads["resume", 0], reads["resume", 1]
    assert first["optimizer_mb"] > 0 and second["optimizer_mb"] == 0
    codec = second["all_groups_mb"]  # read by both when they prepare, and by the first once more
    assert first["all_groups_mb"] == pytest.approx(2 * first["checkpoint_mb"] + codec)
    assert codec < 0.5 * first["checkpoint_mb"]


def test_opening_a_run_for_sampling_reads_no_optimizer(reads):
    assert reads["redi.load", 0]["optimizer_mb"] == 0
