"""Preprocess raw T1-weighted scans: brains in MNI152 space on the model's grid."""

import sys

from utils.common.errors import run_command, status_of_scans
from utils.options.preparation import preprocessing_parser


def main() -> None:
    args = preprocessing_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from utils.common.files import check_writable
    from utils.data.scan_folders import Selection
    from utils.preparation.layouts import named_for
    from utils.preparation.overview import summarize
    from utils.preparation.preprocessing_jobs import Settings, preprocess_all
    from utils.preparation.raw_scans import find_raw_scans
    from utils.preparation.records import DOUBTFUL, FAIL

    check_writable(args.output_dir, args.input)
    scans = named_for(args.layout, find_raw_scans(args.input, Selection(args.participants, args.sessions)))
    settings = Settings(
        args.output_dir,
        args.registration,
        args.device,
        args.keep_failed,
        args.save_masks,
        args.brain_extracted,
        args.overwrite,
        layout=args.layout,
    )
    records = preprocess_all(scans, settings, args.num_workers, args.timeout, args.shard)
    counts = summarize(records, args.output_dir)
    sys.exit(status_of_scans(len(records), counts[DOUBTFUL], counts[FAIL], args.strict, args.shard))


if __name__ == "__main__":
    run_command(main)
