"""Turn runs into tables, figures and a page.

    python report.py --output_dir ../results --out ../report
    python report.py --scores ../report/scores.jsonl.gz --out ../again
    python report.py scores --output_dir ../results --data_dir ../data --out scores.jsonl.gz
    python report.py answers --output_dir ../results --data_dir ../data
    python report.py study --scores FILE --page ../docs/tiny_model.md --figures ../figures/study
    python report.py kept --method nacl,laprox,snapkv --task passkey --example 0 --out ../report

The first writes report.md with the figures it shows, report.html (all of that in one file, and
what ``kept`` has left in the same place, if the runs have its model, task, methods and ratio) and
scores.jsonl.gz (what the report is made of). The second does the same from that file, without the
runs; ``scores`` writes the file alone, where there is no Matplotlib. ``answers`` prints what was
asked and what every run answered. ``study`` brings the tables of a page up to date and draws its
figures. ``kept`` runs one prompt under several methods and draws what each layer and head kept:
kept.png, kept.html and the data, kept.json.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvevict import files
from kvevict.command import Parser, command, from_here, user_path
from reporting import kept, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and print the path of what it wrote, or what it was asked for."""
    argv = list(sys.argv[1:] if argv is None else argv)
    named = COMMANDS.get(argv[0] if argv else "")
    arguments, run = named or (_report_arguments, report)
    print(run(arguments(argv[1:] if named else argv)))


def report(args: argparse.Namespace) -> Path:
    """Write the report of many runs; returns its page."""
    files.make_directory(args.out)
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
        _draw(args.out / picture.file, picture.figure)
        picture.figure.set_layout_engine("none")  # laid out now; the page draws it once more
    files.write(args.out / "report.md", sections.markdown(args.title, parts))
    load.write_scores(args.out / "scores.jsonl.gz", results)
    return files.write(args.out / "report.html", page.page(args.title, parts, found))


def scores(args: argparse.Namespace) -> Path:
    """Grade runs and keep their scores alone; returns the file."""
    results = load.read_runs(args.output_dir, args.data_dir)
    files.make_directory(args.out.parent)
    load.write_scores(args.out, results)
    return args.out


def said(args: argparse.Namespace) -> str:
    """What was asked and answered, as text."""
    from reporting import answers  # Matplotlib takes a second

    return answers.answers(args.output_dir, args.data_dir)


def study(args: argparse.Namespace) -> Path:
    """Bring a study's page up to date; returns it."""
    results = load.read_scores(args.scores)

    from reporting import study  # Matplotlib takes a second

    text = study.refreshed(args.page, results)
    files.make_directory(args.figures)
    for name, figure in study.figures(results):
        _draw(args.figures / f"{name}.png", figure)
    return files.write(args.page, text)


def keep(args: argparse.Namespace) -> Path:
    """Write what each layer and head keeps of one prompt; returns its page."""
    files.make_directory(args.out)
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
    _draw(args.out / "kept.png", kept_figure.kept_figure(found))
    return files.write(args.out / "kept.html", page.page(args.title, [], found))


def _draw(path: Path, figure: Figure) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:])
    files.write(path, picture.getvalue())


def _report_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        description="Turn runs into tables, figures and a page.",
        epilog="report.py scores, answers, study, kept: further commands, each with its --help",
    )
    add = parser.add_argument
    add(
        "--output_dir",
        type=user_path,
        default=from_here(ROOT / "results"),
        help="where the runs lie",
    )
    add("--data_dir", type=user_path, help="where their data lie: adds maps of depth and length")
    add(
        "--scores",
        type=user_path,
        help="read this scores.jsonl.gz of an earlier report, not the runs",
    )
    _add_common(parser)
    return parser.parse_args(argv)


def _scores_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="report.py scores", description="Grade runs and keep the scores in one small file."
    )
    add = parser.add_argument
    add("--output_dir", type=user_path, required=True, help="where the runs lie")
    add("--data_dir", type=user_path, help="where their data lie: adds the depths of the answers")
    add("--out", type=user_path, required=True, help="the file, .jsonl.gz")
    return parser.parse_args(argv)


def _answers_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="report.py answers", description="Print each question with what every run answered."
    )
    add = parser.add_argument
    add("--output_dir", type=user_path, required=True, help="where the runs lie")
    add("--data_dir", type=user_path, required=True, help="as for eval_llama3.py")
    return parser.parse_args(argv)


def _study_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="report.py study", description="Draw a study's figures, fill in its page's tables."
    )
    add = parser.add_argument
    add("--scores", type=user_path, required=True, help="the scores.jsonl.gz of its runs")
    add("--page", type=user_path, required=True, help="the page, whose marked tables are replaced")
    add("--figures", type=user_path, required=True, help="the directory where figures go")
    return parser.parse_args(argv)


def _kept_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="report.py kept",
        description="Run one prompt and draw which positions each layer and head kept.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model_path", default="smollm2-135m-longctx", help="as for eval_llama3.py")
    add("--method", default="nacl,laprox,h2o,snapkv,pyramidkv,streamingllm")
    add("--keep_ratio", type=float, default=0.2, help="share of the cache to keep")
    add(
        "--data_dir",
        type=user_path,
        default=from_here(ROOT / "data"),
        help="where <task>.jsonl lies",
    )
    add("--task", default="passkey")
    add("--example", type=int, default=0, help="which one, from 0")
    add("--framework", default="paddle", help="what runs the model: paddle or pytorch")
    add("--device", help="cpu, gpu or gpu:<n>, by default what there is")
    _add_common(parser)
    return parser.parse_args(argv)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=user_path, default=from_here(ROOT / "report"), help="where to write"
    )
    parser.add_argument("--title", default="KV-cache eviction", help="of the page")


COMMANDS = {
    "scores": (_scores_arguments, scores),
    "answers": (_answers_arguments, said),
    "study": (_study_arguments, study),
    "kept": (_kept_arguments, keep),
}


if __name__ == "__main__":
    sys.exit(main())
