"""Take raw T1-weighted scans to brain-extracted scans on the model's grid."""

import sys

from utils.common.errors import run_command
from utils.options.preparation import preprocessing_parser


def main() -> None:
    args = preprocessing_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from utils.preparation.preprocessing_jobs import Settings, find_raw_scans, preprocess_all, summarize

    part, parts = args.shard
    scans = find_raw_scans(args.input)[part - 1 :: parts]
    settings = Settings(args.output_dir, args.registration, args.device, args.keep_failed, args.save_masks)
    records = preprocess_all(scans, settings, args.num_workers, args.timeout)
    sys.exit(summarize(records, args.output_dir))


if __name__ == "__main__":
    run_command(main)
