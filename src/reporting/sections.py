"""A report before it is a file: one section for each model and mode."""

from __future__ import annotations

import re
from dataclasses import dataclass

from matplotlib.figure import Figure

from reporting.figures import figures
from reporting.likelihood import likelihood_table
from reporting.load import Result
from reporting.pool import Group, pool
from reporting.tables import HOW, Table, cost_table, score_table


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows and its file name below the report."""

    file: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """What a report says of one group of runs."""

    title: str
    pictures: list[Picture]
    tables: list[Table]


def sections(results: list[Result]) -> list[Section]:
    """The whole report. File names say which section they are of where there are several."""
    groups = pool(results)
    made = []
    for group in groups:
        prefix = re.sub(r"\W+", "-", group.title.lower()) + "-" if len(groups) > 1 else ""
        pictures = [Picture(f"{prefix}{name}.png", *rest) for name, *rest in figures(group)]
        made.append(Section(group.title, pictures, tables(group)))
    return made


def tables(group: Group) -> list[Table]:
    """Scores, likelihoods where they were noted, and costs for each length of a group."""
    made = [
        table
        for length, cells in group.parts()
        for table in (
            score_table(cells, length, group.benchmark),
            likelihood_table(cells, length),
            cost_table(cells, length),
        )
    ]
    return [table for table in made if table]


def markdown(title: str, parts: list[Section]) -> str:
    """The report as Markdown; it shows the pictures by their file names."""
    blocks = [f"# {title}"]
    for part in parts:
        blocks.append(f"## {part.title}")
        blocks += [f"![{picture.caption}]({picture.file})" for picture in part.pictures]
        blocks += [table.markdown() for table in part.tables]
    return "\n\n".join([*blocks, HOW]) + "\n"
