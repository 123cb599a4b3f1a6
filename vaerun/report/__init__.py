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
    from vaerun.report.chart import to_png
    from vaerun.report.comparison import TableSpec, compare
    from vaerun.report.formats import to_csv, to_latex, to_markdown
    from vaerun.report.tensorboard import write_events
    from vaerun.storage.atomic import write_atomically

    table = compare(folder, TableSpec())
    text, picture = to_markdown(table), to_png(table)
    for name, content in (("md", text), ("csv", to_csv(table)), ("tex", to_latex(table))):
        write_atomically(folder / f"table.{name}", f"{content}\n".encode())
    write_atomically(folder / "table.png", picture)
    write_events(table, text, picture)
    return text
