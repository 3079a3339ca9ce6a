"""Write a cohort of simulated brains, with ages, sexes and true brain ages."""

from utils.common.errors import run_command, user_errors
from utils.options.preparation import cohort_parser


def main() -> None:
    args = cohort_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from utils.common.log_file import keep_log
    from utils.data.images import model_grid
    from utils.preparation.simulation import draw_subjects, write_cohort

    with user_errors("--voxel_size"):
        model_grid(args.voxel_size)
    subjects = draw_subjects(args.subjects, args.patients, args.seed, patient_gaps=args.patient_gaps)
    written = write_cohort(args.output_dir, subjects, args.seed, args.voxel_size, args.num_workers)
    if written:
        keep_log(args.output_dir)
    print(f"{len(subjects)} simulated brains {'were written to' if written else 'are already in'} {args.output_dir}")


if __name__ == "__main__":
    run_command(main)
