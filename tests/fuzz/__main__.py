"""Fuzz a reader, guided by coverage: ``python -m tests.fuzz {scan,table,checkpoint} MINUTES [CORPUS_FOLDER]``.

Needs ``pip install atheris==3.0.0``, which exists for Linux alone. What makes a reader fail is written to the current folder as ``crash-*``,
``timeout-*`` or ``oom-*``; copy it to ``tests/fuzz/found/<target>/``, and the test suite keeps it.
"""

import sys
from pathlib import Path

import atheris

INSTRUMENTED = ["model", "utils", "nibabel", "openpyxl", "xlrd", "zipfile", "gzip", "pandas.io", "torch.serialization"]


def main() -> None:
    name, minutes, *folder = sys.argv[1:]
    corpus = Path(*folder) if folder else Path("fuzz_corpus", name)
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=[*INSTRUMENTED, "torch._weights_only_unpickler"]):
        from tests.fuzz.targets import TARGETS
    fuzz, seeds = TARGETS[name]
    for number, seed in enumerate(seeds()):
        (corpus / f"seed_{number:02d}").write_bytes(seed)
    limits = ["-timeout=60", "-rss_limit_mb=6000", "-max_len=200000", "-len_control=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], f"-max_total_time={60 * float(minutes):.0f}", *limits, str(corpus)], fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
