"""What the ablation compares: each row changes a few variables of the training scripts."""

from collections.abc import Mapping
from dataclasses import dataclass

Variables = Mapping[str, object]

MSE_ALONE: Variables = {"RANKING": "none", "RANKING_WEIGHT": 0}
NETWORK = "Network"  # the part of rows that change it
PAPER = "paper"  # the row with the losses of the paper, on whose first stage the second stages build
MSE = "mse"
SCALE = 12**0.5  # of ranks between 0 and 1 to the standard deviation of ages


@dataclass(frozen=True)
class Row:
    """A training that differs from others in one thing.

    Parameters
    ----------
    name : str
        Also that of its folder.
    meaning : str
    part : str
        Of the table.
    reference : str
        The row with which it is compared.
    first : mapping or None
        Variables of its first stage; None: it takes that of `of`.
    of : str
        The row whose first stage the second builds on.
    second : mapping or None
        Variables of its second stage; None: the first stage alone is tested.
    age_range : (float, float) or None, years
        Only people of these ages are trained on and tested.
    halves : bool
        Each stage learns from one half of the training people.
    """

    name: str
    meaning: str
    part: str
    reference: str
    first: Variables | None = None
    of: str = PAPER
    second: Variables | None = None
    age_range: tuple[float, float] | None = None
    halves: bool = False


def make_rows(
    age_sd: float, narrow: tuple[float, float], sorter: object, epochs: tuple[int, int], batch_size: int, blocks: int
) -> list[Row]:
    """Return every row of the ablation.

    Parameters
    ----------
    age_sd : float, years
        Standard deviation of the ages, for ranks scaled to years.
    narrow : (float, float), years
        A narrow range of ages.
    sorter : path
        Of a SoDeep sorter for batches of `batch_size`.
    epochs : (int, int)
        Of the first and the second stage.
    batch_size, blocks : int
        The usual ones.
    """
    in_years = (SCALE * age_sd) ** 2
    soft = {"RANKING": "soft", "AGE_DIFFERENCE_WEIGHT": 0}
    sodeep = {"RANKING": "sodeep", "SORTER": sorter, "AGE_DIFFERENCE_WEIGHT": 0}
    scaled = {**soft, "RANKING_WEIGHT": f"{10 * in_years:.0f}"}
    few, shuffled = {"BATCH_SIZE": batch_size // 4}, {"BATCHES": "shuffled"}
    years = f"{narrow[0]:g} to {narrow[1]:g} years"
    losses, batches = "Losses of the first stage", "Batches and ages"
    rows = [
        Row(MSE, "squared error alone", losses, MSE, MSE_ALONE),
        Row(PAPER, "all, as in the paper", losses, MSE, {}),
        Row("soft", "+ soft ranking", losses, MSE, soft),
        Row("sodeep", "+ SoDeep ranking", losses, MSE, sodeep),
        Row("difference", "+ age difference", losses, MSE, {"RANKING": "none"}),
        Row("scaled", "+ soft ranking, ranks in years", losses, MSE, scaled),
        Row("scaled_smooth", "+ the same, temperature 5 years", losses, MSE, {**scaled, "RANK_TEMPERATURE": 5}),
        Row("longer", "all, for the epochs of both stages", losses, PAPER, {"EPOCHS": sum(epochs)}),
        Row("not_dense", "without dense connections", NETWORK, PAPER, {"DENSE_CONNECTIONS": "false"}),
        Row("symmetric", "without asymmetric convolutions", NETWORK, PAPER, {"ASYMMETRIC_CONVOLUTIONS": "false"}),
        Row("no_excitation", "without squeeze-excitation", NETWORK, PAPER, {"SQUEEZE_EXCITATION": "false"}),
        Row("no_sex", "without sex", NETWORK, PAPER, {"USE_SEX": "false"}),
        Row("figure", "the network of the paper's figure", NETWORK, PAPER, {"MODEL": "scaledense_paper", "FILTERS": 8}),
        Row("shuffled_mse", "random batches, squared error alone", batches, "shuffled_mse", {**MSE_ALONE, **shuffled}),
        Row("shuffled", "random batches, all", batches, "shuffled_mse", shuffled),
        Row("few_mse", f"batches of {batch_size // 4}, squared error alone", batches, "few_mse", {**MSE_ALONE, **few}),
        Row("few", f"batches of {batch_size // 4}, all", batches, "few_mse", few),
        Row("narrow_mse", f"{years}, squared error alone", batches, "narrow_mse", MSE_ALONE, age_range=narrow),
        Row("narrow", f"{years}, all", batches, "narrow_mse", {}, age_range=narrow),
    ]  # fmt: skip
    stages = "Second stage"
    in_sample = {"AGE_JITTER": 0}
    rows += [
        Row("second", "ages with an error added (the default)", stages, PAPER, second={}),
        Row("in_sample", "in-sample ages", stages, PAPER, second=in_sample),
        Row("out_of_fold", "out-of-fold ages of 3 folds", stages, PAPER, {"FOLDS": 3}, "out_of_fold", in_sample),
        Row("new_weights", "from new weights", stages, PAPER, second={"START_FROM_FIRST_STAGE": "false"}),
        Row("new_in_sample", "from new weights, in-sample ages", stages, PAPER,
            second={**in_sample, "START_FROM_FIRST_STAGE": "false"}),
        *(Row(f"interval_{step}", f"age interval {step} years", stages, PAPER, second={"AGE_INTERVAL": step})
          for step in (1, 2, 10)),
        Row("continuous", "continuous ages", stages, PAPER, second={"AGE_INTERVAL": 0.01}),
        Row("second_mse", "squared error alone", stages, PAPER, second=MSE_ALONE),
        Row("frozen", "features of the first stage, a new head alone", stages, PAPER, second={"FREEZE_BLOCKS": blocks}),
        Row("augmented", "with rotation, scaling and noise", stages, PAPER,
            second={"AUGMENTATION": "flip,gain,gamma,rotation,scaling,noise"}),
        Row("one_hot", "one-hot age", stages, PAPER, second={"AGE_BINS": 5}),
        Row("distribution", "continuous age as a distribution over bins of 5 years", stages, PAPER,
            second={"AGE_BINS": 5, "AGE_INTERVAL": 0.01}),
        Row("finer", "finer grid, 2 mm", stages, PAPER, second={"OWN_VOXEL_SIZE": 2}),
        Row("halves", "each stage on its own half of the people", stages, PAPER, {}, "halves", {}, halves=True),
    ]  # fmt: skip
    return rows
