"""Renders the report as one HTML page from report.html.j2."""
import os
from typing import Any
from typing import NamedTuple
from typing import Sequence

from common.errors import UserError
from report import plots

try:
    import jinja2
except ImportError:  # optional: training does not need it
    jinja2 = None


class Section(NamedTuple):
    """A section of the page; the contents at the top list its heading."""
    name: str       # id of its HTML element
    heading: str
    kind: str       # the macro of the template that shows the content
    content: Any    # argument of that macro, or a sentence (str) to show instead


class HtmlTable(NamedTuple):
    """A table and its caption."""
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]     # cells: text, numbers, or None for an empty one
    caption: str = ''
    is_marked: Sequence[bool] = ()    # for each row, whether it is highlighted; () for none

    @property
    def is_numeric(self):
        """For each column, whether it holds only numbers and is aligned to the right."""
        return [all(map(_is_number, column)) for column in zip(*self.rows)] or [
            False] * len(self.headings)


class Figure(NamedTuple):
    """An `<svg>` element and its caption."""
    svg: str
    caption: str


def check_installed():
    """Raises UserError if a package that only the report needs is not installed."""
    for package, module in (('matplotlib', plots.matplotlib), ('Jinja2', jinja2)):
        if module is None:
            raise UserError(f'{package}: required for reports but not installed; run '
                            '.venv/bin/python -m pip install -r requirements-report.lock.')


def render(title, subtitle, overview, sections):
    """Returns the page as HTML, str.

    Args:
      title, subtitle: str.
      overview: content at the top: an `HtmlTable`, or for tiles a list of (name, value or None).
      sections: list of `Section`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template('report.html.j2').render(
        title=title, subtitle=subtitle, overview=overview, sections=sections)


def _is_number(cell):
    text = '' if cell is None else str(cell).replace(',', '').rstrip('%')
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
