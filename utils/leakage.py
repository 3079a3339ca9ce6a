"""Find persons who stand on both sides of a line that must part them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from utils.checkpoints import load_checkpoint
from utils.subjects import person_of
from utils.weights import read_manifest

SHOWN = 20  # names in a line


def networks_persons(
    checkpoints: Sequence[Path], weights_dir: Path | None
) -> tuple[dict[str, set[str]], list[float], list[str]]:
    """Read whom the networks have seen.

    Parameters
    ----------
    checkpoints : sequence of Path
        Of one stage or both.
    weights_dir : Path or None
        Of weights that `predict.py` takes.

    Returns
    -------
    persons : dict of str to set of str
        By what they were used for, in words.
    ages : list of float, years
        The training subjects', or their range; empty where not recorded.
    warnings : list of str
        Of networks that do not say whom they have seen.
    """
    persons: dict[str, set[str]] = {}
    ages: list[float] = []
    warnings = []
    for path in checkpoints:
        content = load_checkpoint(path)
        if "train_subjects" not in content:
            warnings.append(f"{path} does not record its training subjects, so leakage from it cannot be seen")
            continue
        stage = {1: "first stage's ", 2: "second stage's "}.get(content.get("network", {}).get("stage"), "")
        for key, use in (("train_subjects", "training"), ("valid_subjects", "validation, which chooses the epoch,")):
            persons[f"the {stage}{use} of {path}"] = {person_of(subject_id) for subject_id in content.get(key, [])}
        ages += content.get("train_ages", [])
    if weights_dir:
        manifest = read_manifest(weights_dir)
        persons[f"the training of {weights_dir}"] = set(manifest["training_persons"])
        ages += manifest["age_range"]
    return persons, ages, warnings


def find_leaks(tested: Collection[str], others: Mapping[str, Collection[str]], tested_name: str) -> list[str]:
    """Return a line for each set of persons that shares some with the tested ones, with their names.

    >>> find_leaks({"sub-1", "sub-2"}, {"the fit": {"sub-2", "sub-3"}}, "the test set")
    ['1 person of the test set is in the fit too: sub-2']
    """
    lines = []
    for name, known in others.items():
        shared = sorted(set(tested) & set(known))
        if shared:
            more = f" and {len(shared) - SHOWN} more" if len(shared) > SHOWN else ""
            who = "person" if len(shared) == 1 else "persons"
            be = "is" if len(shared) == 1 else "are"
            lines.append(f"{len(shared)} {who} of {tested_name} {be} in {name} too: {', '.join(shared[:SHOWN])}{more}")
    return lines
