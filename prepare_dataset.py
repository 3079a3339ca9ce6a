"""Make a data set for training from preprocessed scans and a label table."""

from utils.common.errors import run_command
from utils.options.preparation import dataset_parser


def main() -> None:
    args = dataset_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from utils.common.log_file import keep_log
    from utils.preparation.labelling import label_scans
    from utils.preparation.splitting import (
        check_given_splits,
        describe_splits,
        find_prepared_scans,
        split_by_person,
        write_dataset,
    )

    scans = label_scans(
        find_prepared_scans(args.preprocessed, args.include_doubtful),
        args.label_table,
        person_column=args.person_column,
        site_column=args.site_column,
        split_column=args.split_column,
        where=args.where,
        skip_unlabelled=args.skip_unlabelled,
    )
    if args.split_column:
        check_given_splits(scans, args.label_table)
    else:
        scans = split_by_person(scans, args.fractions, args.seed)
    write_dataset(args.output_dir, scans, args.copy)
    keep_log(args.output_dir)
    print(describe_splits(scans))
    print(f"written to {args.output_dir}: DATA={args.output_dir} bash bash_train_first_stage.sh")


if __name__ == "__main__":
    run_command(main)
