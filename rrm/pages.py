"""Tables and texts as HTML pages that stand alone: one file each, no script, nothing from the network."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

import pandas as pd

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #1c2733; background: #fff; margin: 1.2rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; } p { max-width: 60rem; }
table { border-collapse: collapse; margin: 0.6rem 0; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #d9dfe6; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: #eef2f6; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.long { min-width: 14rem; font-size: 0.85em; overflow-wrap: anywhere; }
tr.measured td { background: #eaf6ec; }
pre, code { font-family: ui-monospace, monospace; font-size: 0.92em; }
pre { background: #f5f7f9; padding: 0.8rem; overflow-x: auto; }
"""
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")
_LONG = 60  # characters from which a cell's text wraps


def page(title: str, body: str) -> str:
    """A whole HTML page; `title` is plain text, `body` is HTML."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def table_body(table: pd.DataFrame) -> str:
    """A table of texts as HTML: columns without any text are left out, numbers stand to the right.

    Rows whose column `source` is "measured" come first and are set off from what papers report.

    Args:
        table: all cells text, empty where there is nothing.

    Example:
        >>> "<td>a&lt;b</td>" in table_body(pd.DataFrame({"x": ["a<b"], "y": [""]}))
        True
    """
    if table.empty:
        return "<p>None.</p>"
    shown = table.loc[:, (table != "").any(axis=0)]
    head = "".join(f"<th>{html.escape(str(name).replace('_', ' '))}</th>" for name in shown)
    rows = []
    for row in sorted(shown.to_dict("records"), key=lambda row: row.get("source") != "measured"):
        kind = ' class="measured"' if row.get("source") == "measured" else ""
        rows.append(f"<tr{kind}>{''.join(_cell(str(value)) for value in row.values())}</tr>")
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"


def _cell(text: str) -> str:
    kind = ' class="number"' if _NUMBER.fullmatch(text) else ' class="long"' if len(text) > _LONG else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def text_body(text: str) -> str:
    """Text as it stands."""
    return f"<pre>{html.escape(text)}</pre>"


def markdown_body(text: str) -> str:
    r"""The Markdown that this project's pages use, as HTML: headings, paragraphs, tables and `code`.

    Example:
        >>> markdown_body("# One\n\nSome `x < 1`\nhere.")
        '<h1>One</h1>\n<p>Some <code>x &lt; 1</code> here.</p>'
    """
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", text.strip())]
    return "\n".join(_markdown_block(lines) for lines in blocks)


def _markdown_block(lines: Sequence[str]) -> str:
    marks = re.match(r"(#{1,3}) ", lines[0])
    if marks:
        level = len(marks[1])
        heading = f"<h{level}>{_inline(lines[0][level + 1 :])}</h{level}>"
        return heading + ("\n" + _markdown_block(lines[1:]) if lines[1:] else "")
    if lines[0].startswith("|"):
        return _markdown_table(lines)
    return f"<p>{_inline(' '.join(lines))}</p>"


def _markdown_table(lines: Sequence[str]) -> str:
    head, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]

    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_inline(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<table>\n<thead>{row(head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
