"""The short form of fuzzing: the same changes of the same files each time, and every file that was ever found.

`tests.fuzz.__main__` is the long form.
"""

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

MUTANTS = 250  # of each target
HEADER = 400  # bytes; most fields of a file's format stand there
INTERESTING = (
    b"\x00",
    b"\xff",
    b"\x7f\xff",
    b"\x80\x00\x00\x00",
    b"\xff\xff\xff\x7f",
    b"nan",
    b"inf",
    b"-1",
    b'"',
    b"\n",
)
FOUND = sorted((Path(__file__).parent / "found").glob("*/*"))


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change a few places of a file, mostly near its beginning; the first byte, its kind, stays."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        place = 1 + rng.randrange(max(1, min(len(changed) - 1, HEADER if rng.random() < 0.7 else len(changed))))
        size = rng.choice((1, 2, 4, 8, 32))
        kind = rng.randrange(5)
        if kind == 0:
            changed[place : place + size] = rng.randbytes(size)
        elif kind == 1:
            changed[place : place + 1] = rng.choice(INTERESTING)
        elif kind == 2:
            del changed[place : place + size]
        elif kind == 3:
            changed[place:place] = changed[place : place + size] * rng.choice((1, 2, 50))
        else:
            del changed[len(changed) - rng.randrange(len(changed)) :]
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_no_changed_file_does_anything_but_be_refused(name) -> None:
    fuzz, make_seeds = TARGETS[name]
    seeds = list(make_seeds())
    rng = random.Random(0)
    for seed in seeds:
        fuzz(seed)
    for _ in range(MUTANTS):
        fuzz(mutate(rng.choice(seeds), rng))


@pytest.mark.parametrize("path", FOUND, ids=[f"{path.parent.name}: {path.name}" for path in FOUND])
def test_what_was_found_is_refused(path) -> None:
    TARGETS[path.parent.name][0](path.read_bytes())
