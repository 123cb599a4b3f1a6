"""Tables of runs, built from the files in their directories alone."""

from __future__ import annotations

from pathlib import Path

TABLES = ("table.md", "table.csv", "table.tex", "table.png")


def write_all(folder: Path) -> str:
    """Write table.md, table.csv, table.tex, table.png and TensorBoard events into a sweep's folder.

    The metrics are those of its configuration (sweep.table.metric), by default all log-likelihoods that the runs have.

    Arguments:
        folder: contains sweep.json, run directories or both, in any state.

    Returns the tables in Markdown. Raises InputError if the runs are not comparable, RunError if a file cannot be
    written.
    """
    from vaerun.report.chart import to_png
    from vaerun.report.comparison import compare
    from vaerun.report.formats import to_csv, to_latex, to_markdown
    from vaerun.report.table_spec import TableSpec
    from vaerun.report.tensorboard import write_events
    from vaerun.storage.atomic import write_atomically

    tables = compare(folder, TableSpec())
    text, picture = to_markdown(tables), to_png(tables)
    for name, content in (("md", text), ("csv", to_csv(tables)), ("tex", to_latex(tables))):
        write_atomically(folder / f"table.{name}", f"{content}\n".encode())
    write_atomically(folder / "table.png", picture)
    write_events(tables, text, picture)
    return text
