"""Compare any number of runs: one table on the screen and as CSV, and one figure."""

from utils.common.errors import run_command
from utils.options.analysis import comparison_parser


def main() -> None:
    args = comparison_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    import pandas as pd

    from utils.analysis.run_comparison import compare, describe_comparison, differing_flags, read_runs
    from utils.analysis.run_figure import plot_comparison
    from utils.common.files import check_results, replacing
    from utils.common.log_file import keep_log

    table, figure = args.output_dir / "comparison.csv", args.output_dir / "comparison.png"
    check_results(args.output_dir, [table.name, figure.name], args.overwrite)
    runs = read_runs(args.runs)
    compared, flags = compare(runs, args.seed), differing_flags(runs)
    with replacing(table) as temporary:
        everything = pd.concat([compared, flags.T.reset_index(drop=True)], axis=1)
        everything.insert(1, "folder", [str(folder) for folder in args.runs])
        everything.to_csv(temporary, index=False, float_format="%.6g")
    with replacing(figure) as temporary:
        plot_comparison(runs, compared).savefig(temporary, dpi=150)
    keep_log(args.output_dir)
    print("\n".join(describe_comparison(compared, flags)))
    print(f"table: {table}   figure: {figure}")


if __name__ == "__main__":
    run_command(main)
