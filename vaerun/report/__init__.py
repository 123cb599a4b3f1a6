"""Tables of runs, made from the files of their directories alone."""

from __future__ import annotations

from pathlib import Path

TABLES = ("table.md", "table.csv", "table.tex", "table.png")


def write_all(folder: Path) -> str:
    """Writes table.md, table.csv, table.tex, table.png and TensorBoard's events into a sweep's folder.

    Arguments:
        folder: with sweep.json, run directories or both, in whatever state they are.

    Returns the table in Markdown. Raises InputError where the runs do not compare, RunError where a file cannot be
    written.
    """
    from vaerun.report.chart import png
    from vaerun.report.comparison import Question, compare
    from vaerun.report.formats import comma_separated, latex, markdown
    from vaerun.report.tensorboard import write_board
    from vaerun.storage.atomic import write_atomically

    table = compare(folder, Question())
    text, picture = markdown(table), png(table)
    for name, content in (("md", text), ("csv", comma_separated(table)), ("tex", latex(table))):
        write_atomically(folder / f"table.{name}", f"{content}\n".encode())
    write_atomically(folder / "table.png", picture)
    write_board(table, text, picture)
    return text
