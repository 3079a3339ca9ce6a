"""SIGKILL at any moment; then --resume ends as if nothing had happened."""

import signal

import numpy as np
import pytest

from tests.faults.helpers import differences, outcome

SHORT_FORM, LONG_FORM = 2, 50  # moments in each stage
LATEST = 0.004  # s after a change of a file begins, so that the write itself is cut


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_any_moment_and_resumed_equals_undisturbed(undisturbed, long_form, tmp_path, stage) -> None:
    """Half of the moments lie in the writing of files, half anywhere."""
    whole = undisturbed[stage]
    rng = np.random.default_rng(stage)
    killed, moments = 0, LONG_FORM if long_form else SHORT_FORM
    for number in range(moments):
        root, in_a_write = tmp_path / str(number), number % 2 == 0
        change = int(rng.integers(1, whole.changes)) if in_a_write else 0
        seconds = rng.uniform(0, LATEST if in_a_write else whole.seconds)
        status = whole.training.killed(root, change, seconds)
        assert status in (0, -signal.SIGKILL), (root / "log.txt").read_text()
        killed += status != 0
        assert whole.training.run(root, "--resume") == 0, (root / "log.txt").read_text()
        assert differences(outcome(root), whole.outcome) == [], f"{change=}, {seconds=}"
    print(
        f"stage {stage}: {killed} of {moments} runs were killed ({whole.changes} changes of files, {whole.seconds:.1f} s)"
    )
    assert killed > 0
