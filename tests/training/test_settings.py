"""Which settings make validation subjects choose something."""

import pytest

from tests.training.helpers import flags
from utils.options.flags import settings_from
from utils.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("keep", "scheduler", "chooses"), [("last", "cosine", False), ("best", "cosine", True), ("last", "plateau", True)]
)
def test_validation_subjects_that_choose_the_epoch_or_the_rate(keep, scheduler, chooses) -> None:
    settings = settings_from(TrainingSettings, flags("--keep", keep, "--scheduler", scheduler))
    assert settings.chooses_by_validation is chooses
