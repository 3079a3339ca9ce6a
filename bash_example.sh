#!/usr/bin/env bash
# A known answer: estimates the brain age of the scan in example/, and ends with status 1 if it is not the expected one.
#   bash bash_example.sh
# Sets up the environment on the first call.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/bash_setup.sh"

if (($#)); then
  echo "error: bash_example.sh takes no flags; set its variable, OUTPUT_DIR=/path/to/folder bash bash_example.sh" >&2
  exit 2
fi
OUTPUT_DIR="${OUTPUT_DIR:-predictions/example}"       # folder for predictions.csv and the picture
expected=23.79                                        # years; with AVX-512, AVX2 and SSE4.1 alike
tolerance=0.05                                        # years

set_up_environment requirements.txt requirements-preprocess.txt
"$PYTHON" "$HERE/predict.py" --input "$HERE/example/brain.nii.gz" --output_dir "$OUTPUT_DIR" --overwrite true --sex F
echo "picture: $OUTPUT_DIR/pictures/brain.png"
"$PYTHON" -c '
import csv, sys
table, expected, tolerance = sys.argv[1], *map(float, sys.argv[2:])
with open(table, newline="") as file:
    age = float(next(csv.DictReader(file))["brain_age"])
print(f"brain age {age:.2f} years, expected {expected:.2f} +/- {tolerance:.2f} years")
if abs(age - expected) > tolerance:
    sys.exit("error: this installation computes another age; compare the installed packages with requirements.txt")
' "$OUTPUT_DIR/predictions.csv" "$expected" "$tolerance"
