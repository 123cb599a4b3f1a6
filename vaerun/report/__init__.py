"""Tables of runs, built from the files in their directories alone."""

from __future__ import annotations

from pathlib import Path

TABLES = ("table.md", "table.csv", "table.tex", "table.png")


def write_all(folder: Path) -> str:
    """Write table.md, table.csv, table.tex, table.png and TensorBoard events into a sweep's folder.

    Arguments:
        folder: contains sweep.json, run directories or both, in any state.

    Returns the table in Markdown. Raises InputError if the runs are not comparable, RunError if a file cannot be
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
