"""What the ablation compares: each row changes a few variables of the training scripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Variables = Mapping[str, object]

MSE, PAPER = "mse", "paper"  # rows with which others are compared
LOSSES, NETWORK, BATCHES, STAGES = "Losses of the first stage", "Network", "Batches and ages", "Second stage"
UNIFORM_SD = 12**-0.5  # standard deviation of ranks between 0 and 1
MSE_ALONE: Variables = {"RANKING": "none", "RANKING_WEIGHT": 0}
IN_SAMPLE: Variables = {"AGE_JITTER": 0}


@dataclass(frozen=True)
class Row:
    """A training, and the one with which it is compared.

    Parameters
    ----------
    name : str
        Also that of its folder.
    meaning : str
        For people.
    part : str
        The part of the table in which it stands.
    reference : str
        Name of the row with which it is compared.
    first : mapping or None
        Variables of its first stage; None: it builds on that of `PAPER`.
    second : mapping or None
        Variables of its second stage; None: it has none.
    age_range : (float, float) or None, years
        Only people of these ages are trained on and tested.
    halves : bool
        Whether the stages learn from different halves of the people.
    """

    name: str
    meaning: str
    part: str
    reference: str
    first: Variables | None = None
    second: Variables | None = None
    age_range: tuple[float, float] | None = None
    halves: bool = False


def make_rows(
    plain: Sequence[Mapping[str, Any]], age_sd: float, narrow: tuple[float, float], sorter: object
) -> list[Row]:
    """Return every row of the ablation.

    Parameters
    ----------
    plain : sequence of mapping
        The flags with which each stage is trained where a row does not change them, by name.
    age_sd : float, years
        Standard deviation of the ages.
    narrow : (float, float), years
        A narrow range of ages.
    sorter : path
        Of a SoDeep sorter.
    """
    first, second = plain
    soft = {"RANKING": "soft", "AGE_DIFFERENCE_WEIGHT": 0}
    scaled = {**soft, "RANKING_WEIGHT": round(first["ranking_weight"] * (age_sd / UNIFORM_SD) ** 2)}
    all_epochs = first["epochs"] + second["epochs"]
    few = {"BATCH_SIZE": max(2, first["batch_size"] // 4)}
    shuffled = {"BATCHES": "shuffled"}
    as_first = {"EPOCHS": first["epochs"], "LEARNING_RATE": first["learning_rate"],
                "WARMUP_EPOCHS": first["warmup_epochs"]}  # fmt: skip
    batches, ages = f"batches of {few['BATCH_SIZE']}", f"{narrow[0]:g} to {narrow[1]:g} years"
    stronger = ",".join([*first["augmentation"], "rotation", "scaling", "noise"])
    return [
        Row(MSE, "squared error alone", LOSSES, MSE, MSE_ALONE),
        Row(PAPER, "all, as in the paper", LOSSES, MSE, {}),
        Row("soft", "+ soft ranking", LOSSES, MSE, soft),
        Row("sodeep", "+ SoDeep ranking", LOSSES, MSE, {**soft, "RANKING": "sodeep", "SORTER": sorter}),
        Row("difference", "+ age difference", LOSSES, MSE, {"RANKING": "none"}),
        Row("scaled", "+ soft ranking, ranks in years", LOSSES, MSE, scaled),
        Row("scaled_smooth", "+ the same, temperature 5 years", LOSSES, MSE, {**scaled, "RANK_TEMPERATURE": 5}),
        Row("longer", "all, for the epochs of both stages", LOSSES, PAPER, {"EPOCHS": all_epochs}),
        Row("not_dense", "without dense connections", NETWORK, PAPER, {"DENSE_CONNECTIONS": "false"}),
        Row("symmetric", "without asymmetric convolutions", NETWORK, PAPER, {"ASYMMETRIC_CONVOLUTIONS": "false"}),
        Row("no_excitation", "without squeeze-excitation", NETWORK, PAPER, {"SQUEEZE_EXCITATION": "false"}),
        Row("no_sex", "without sex", NETWORK, PAPER, {"USE_SEX": "false"}),
        Row("figure", "the network of the paper's figure", NETWORK, PAPER, {"MODEL": "scaledense_paper", "FILTERS": 8}),
        Row("shuffled_mse", "random batches, squared error alone", BATCHES, MSE, {**MSE_ALONE, **shuffled}),
        Row("shuffled", "random batches, all", BATCHES, "shuffled_mse", shuffled),
        Row("few_mse", f"{batches}, squared error alone", BATCHES, MSE, {**MSE_ALONE, **few}),
        Row("few", f"{batches}, all", BATCHES, "few_mse", few),
        Row("narrow_mse", f"{ages}, squared error alone", BATCHES, "narrow_mse", MSE_ALONE, age_range=narrow),
        Row("narrow", f"{ages}, all", BATCHES, "narrow_mse", {}, age_range=narrow),
        Row("second", "the default: in-sample ages with an error added", STAGES, PAPER, second={}),
        Row("in_sample", "in-sample ages", STAGES, PAPER, second=IN_SAMPLE),
        Row("out_of_fold", "out-of-fold ages of 3 folds", STAGES, PAPER, {"FOLDS": 3}, IN_SAMPLE),
        Row("halves", "each stage trained on its own half of the people", STAGES, PAPER, {}, {}, halves=True),
        Row("new_weights", "from new weights", STAGES, PAPER, second={"START_FROM_FIRST_STAGE": "false"}),
        Row("new_long", "from new weights, trained as the first stage", STAGES, PAPER,
            second={"START_FROM_FIRST_STAGE": "false", **as_first}),
        *(Row(f"interval_{step}", f"ages discretized in steps of {step}", STAGES, PAPER, second={"AGE_INTERVAL": step})
          for step in (1, 2, 10)),
        Row("continuous", "continuous ages", STAGES, PAPER, second={"AGE_INTERVAL": 0.01}),
        Row("second_mse", "squared error alone", STAGES, PAPER, second=MSE_ALONE),
        Row("frozen", "features of the first stage: only the head is trained", STAGES, PAPER,
            second={"FREEZE_BLOCKS": first["blocks"]}),
        Row("augmented", "with rotation, scaling and noise", STAGES, PAPER, second={"AUGMENTATION": stronger}),
    ]  # fmt: skip
