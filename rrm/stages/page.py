"""Stage `page`: a table (CSV), a configuration (YAML) or a text (Markdown) as an HTML page, for the report."""

from __future__ import annotations

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
    if source.suffix == ".csv":
        body = table_body(pd.read_csv(source, dtype=str, keep_default_na=False))
    elif source.suffix in (".yaml", ".md"):
        text = source.read_text(encoding="utf-8")
        body = text_body(text) if source.suffix == ".yaml" else markdown_body(text)
    else:
        raise RRMError(f"page: expected a .csv, .yaml or .md file, got {source}: give another")
    with atomic_path(call.output) as temporary:
        temporary.write_text(page(title, body), encoding="utf-8")
