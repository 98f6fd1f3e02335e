"""Stage `page`: a table (CSV), a configuration (YAML), a text (Markdown) or the gallery as HTML, for the report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rrm.errors import RRMError
from rrm.pages import markdown_body, page, table_body, text_body
from rrm.pipeline import PAGES
from rrm.stages.call import Call
from rrm.store import atomic_path


def run(call: Call) -> None:
    """Write the page; its title goes by the name of the output."""
    source = call.input("source")
    title = PAGES[call.output.stem][0] if call.output.stem in PAGES else source.name
    with atomic_path(call.output) as temporary:
        temporary.write_text(_page(source, title), encoding="utf-8")


def _page(source: Path, title: str) -> str:
    if source.suffix == ".csv":
        return page(title, table_body(pd.read_csv(source, dtype=str, keep_default_na=False)))
    if source.suffix == ".yaml":
        return page(title, text_body(source.read_text(encoding="utf-8")))
    if source.suffix == ".md":
        return page(title, markdown_body(source.read_text(encoding="utf-8")))
    if source.suffix == ".html":
        from rrm.gallery import in_one_file

        return in_one_file(source)
    raise RRMError(f"page: expected a .csv, .yaml, .md or .html file, got {source}: give another")
