"""What made a result: version of the project, packages, device, command."""

import os
import platform
import shlex
import subprocess
import sys
import tomllib
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from utils.common.files import PROJECT

PACKAGES = (
    "torch", "numpy", "scipy", "nibabel", "pandas", "tensorboard", "scikit-learn", "matplotlib", "SimpleITK",
    "picsl_greedy", "nilearn",
)  # fmt: skip


@cache
def software_version() -> str:
    """Return the version of this project."""
    return str(tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def describe_run(device: Any = None) -> dict[str, Any]:
    """Return versions, device, command and git commit.

    Parameters
    ----------
    device : torch.device, its name, or None
        On which networks run; None: the CPU.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    commit = None
    if (PROJECT / ".git").exists():
        with suppress(OSError):  # git may be missing
            found = subprocess.run(
                ["git", "-C", str(PROJECT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
            )
            commit = found.stdout.strip() if found.returncode == 0 else None
    return {
        "software_version": software_version(),
        "versions": versions,
        "device_name": _name_of(device),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "command": sys.argv,
        "git_commit": commit,
    }


def command_line() -> str:
    """Return the command of this process, as a shell takes it."""
    return shlex.join(sys.argv)


def _name_of(device: Any) -> str:
    """Return the name of a GPU or of the processor."""
    if str(device).startswith("cuda"):
        import torch  # is loaded already

        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
