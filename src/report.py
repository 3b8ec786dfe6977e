"""Turn runs into tables, figures and a page.

    python report.py --output_dir ../results --out ../report
    python report.py --scores ../report/scores.jsonl.gz --out ../again
    python report.py scores --output_dir ../results --data_dir ../data --out scores.jsonl.gz
    python report.py study --scores FILE --page ../docs/study.md --figures ../figures/study
    python report.py kept --method nacl,laprox,snapkv --task passkey --example 0 --out ../report

The first writes report.md with the figures it shows, report.html (all of that in one file, and
what ``kept`` has left in the same place, if the runs have its model, task, methods and ratio) and
scores.jsonl.gz (what the report is made of). The second does the same from that file, without the
runs; ``scores`` writes the file alone, where there is no Matplotlib. ``study`` brings the tables of
a page up to date and draws its figures. ``kept`` runs one prompt under several methods and draws
what each layer and head kept: kept.png, kept.html and the data, kept.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kvevict.errors import InputError
from reporting import kept, load


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one sentence on what is wrong with the input."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = COMMANDS.get(argv[0] if argv else "")
    arguments, run = command or (_report_arguments, report)
    args = arguments(argv[1:] if command else argv)
    try:
        print(run(args))
    except (InputError, FloatingPointError) as error:
        return _fail(error)
    except OSError as error:
        return _fail(f"cannot write {error.filename}: {error.strerror}")
    return 0


def report(args: argparse.Namespace) -> Path:
    """Write the report of many runs; returns its page."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.scores:
        results = load.read_scores(args.scores)
    else:
        results = load.read_runs(args.output_dir, args.data_dir)
    of_prompt = args.out / "kept.json"
    found = kept.load(of_prompt) if of_prompt.exists() else None
    if found and not found.is_of(results):
        print(f"{of_prompt} is of other runs, and not on the page", file=sys.stderr)
        found = None

    from reporting import page, sections  # Matplotlib takes a second

    parts = sections.sections(results)
    for picture in (picture for part in parts for picture in part.pictures):
        picture.figure.savefig(args.out / picture.file)
        picture.figure.set_layout_engine("none")  # laid out now; the page draws it once more
    _write(args.out / "report.md", sections.markdown(args.title, parts))
    load.write_scores(args.out / "scores.jsonl.gz", results)
    return _write(args.out / "report.html", page.page(args.title, parts, found))


def scores(args: argparse.Namespace) -> Path:
    """Grade runs and keep their scores alone; returns the file."""
    results = load.read_runs(args.output_dir, args.data_dir)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    load.write_scores(args.out, results)
    return args.out


def study(args: argparse.Namespace) -> Path:
    """Bring a study's page up to date; returns it."""
    results = load.read_scores(args.scores)

    from reporting import study  # Matplotlib takes a second

    args.figures.mkdir(parents=True, exist_ok=True)
    text = study.refreshed(args.page, results)
    for name, figure in study.figures(results):
        figure.savefig(args.figures / f"{name}.png")
    return _write(args.page, text)


def keep(args: argparse.Namespace) -> Path:
    """Write what each layer and head keeps of one prompt; returns its page."""
    args.out.mkdir(parents=True, exist_ok=True)
    methods = [name.strip() for name in args.method.split(",")]
    from evaluation.capture import capture

    found = capture(
        args.model_path,
        methods,
        args.keep_ratio,
        args.task,
        args.example,
        args.data_dir,
        args.device,
        args.framework,
    )

    from reporting import kept_figure, page

    found.save(args.out / "kept.json")
    kept_figure.kept_figure(found).savefig(args.out / "kept.png")
    return _write(args.out / "kept.html", page.page(args.title, [], found))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8", "replace")
    return path


def _fail(message: object) -> int:
    print("error:", *str(message).split(), file=sys.stderr)
    return 2


def _report_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Turn runs into tables, figures and a page.",
        epilog="report.py scores, study and kept are further commands; each has its --help",
    )
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("../results"), help="where the runs lie")
    add("--data_dir", type=Path, help="where their data lie: adds maps of depth and length")
    add("--scores", type=Path, help="read this scores.jsonl.gz of an earlier report, not the runs")
    _add_common(parser)
    return parser.parse_args(argv)


def _scores_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py scores", description="Grade runs and keep the scores in one small file."
    )
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="where the runs lie")
    add("--data_dir", type=Path, help="where their data lie: adds the depths of the answers")
    add("--out", type=Path, required=True, help="the file, .jsonl.gz")
    return parser.parse_args(argv)


def _study_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py study", description="Draw a study's figures, fill in its page's tables."
    )
    add = parser.add_argument
    add("--scores", type=Path, required=True, help="the scores.jsonl.gz of its runs")
    add("--page", type=Path, required=True, help="the page, whose marked tables are replaced")
    add("--figures", type=Path, required=True, help="the directory where figures go")
    return parser.parse_args(argv)


def _kept_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py kept",
        description="Run one prompt and draw which positions each layer and head kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_path", default="smollm2-135m-longctx", help="as for eval_llama3.py")
    add("--method", default="nacl,laprox,h2o,snapkv,pyramidkv,streamingllm")
    add("--keep_ratio", type=float, default=0.2, help="share of the cache to keep")
    add("--data_dir", type=Path, default=Path("../data"), help="where <task>.jsonl lies")
    add("--task", default="passkey")
    add("--example", type=int, default=0, help="which one, from 0")
    add("--framework", default="paddle", help="what runs the model: paddle or pytorch")
    add("--device", help="cpu, gpu or gpu:<n>, by default what there is")
    _add_common(parser)
    return parser.parse_args(argv)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("../report"), help="where to write")
    parser.add_argument("--title", default="KV-cache eviction", help="of the page")


COMMANDS = {
    "scores": (_scores_arguments, scores),
    "study": (_study_arguments, study),
    "kept": (_kept_arguments, keep),
}


if __name__ == "__main__":
    sys.exit(main())
