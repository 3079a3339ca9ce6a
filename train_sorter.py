"""Train a SoDeep sorter on synthetic ages."""

from utils.common.errors import InputError, run_command, user_errors
from utils.options.training import sorter_parser


def main() -> None:
    args = sorter_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    import torch
    from tqdm import tqdm

    from model.sorter import Sorter, evaluate_sorter, fit_sorter
    from utils.common import distributed
    from utils.common.checkpoints import save_checkpoint
    from utils.common.files import check_results
    from utils.common.log_file import keep_log

    check_results(args.output.parent, [args.output.name], args.overwrite, variable="OUTPUT")
    if not args.youngest < args.oldest:
        raise InputError(f"--youngest {args.youngest:g} is not below --oldest {args.oldest:g}; widen the range")
    device = distributed.start(args.device)
    keep_log(args.output.parent, device)
    torch.manual_seed(args.seed)
    middle, spread = (args.youngest + args.oldest) / 2, (args.oldest - args.youngest) / 4
    with user_errors("--length"):
        sorter = Sorter(args.model_type, args.length, middle, spread)
    generator = torch.Generator().manual_seed(args.seed)
    training = fit_sorter(
        sorter,
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        low=args.youngest,
        high=args.oldest,
        generator=generator,
        device=device,
    )
    with tqdm(training, "training the sorter", args.steps, unit="step", disable=None) as bar:
        for step, loss in bar:
            bar.set_postfix(error=f"{loss:.3f} places", refresh=False)
            if step % max(1, args.steps // 10) == 0:
                tqdm.write(f"step {step:>6}  mean error {loss:.3f} places")
    quality = evaluate_sorter(sorter, args.youngest, args.oldest, generator)
    save_checkpoint(args.output, {**sorter.cpu().to_checkpoint(), **quality})
    print(
        f"{args.output}: ranks {args.length} ages of {args.youngest:g} to {args.oldest:g} years with a mean error of "
        f"{quality['rank_error']:.3f} places; correlation with the true ranks {quality['correlation']:.4f}"
    )


if __name__ == "__main__":
    run_command(main)
