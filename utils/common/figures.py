"""A matplotlib that needs no screen, and draws names as they are."""

import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams["text.parse_math"] = False  # a subject called $1 is no formula

from matplotlib.figure import Figure

__all__ = ["Figure"]
