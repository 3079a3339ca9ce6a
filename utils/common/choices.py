"""Names that users choose from; here, so that --help need not import the code behind them."""

AUGMENTATIONS = (
    "flip", "rotation", "scaling", "blur", "erosion", "gain", "gamma", "contrast", "bias_field", "noise",
)  # fmt: skip
CORRECTIONS = ("linear-gap", "linear-prediction", "covariate")  # of the brain-age gap
PATIENT_GAPS = {"MCI": 5.0, "AD": 10.0}  # years, mean true gap of simulated patients; 0 in healthy subjects
