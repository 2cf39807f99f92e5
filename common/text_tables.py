"""Records as text, Markdown, JSON or CSV."""
import csv
import io
import json
import textwrap
from typing import Any
from typing import Callable
from typing import Dict
from typing import List
from typing import NamedTuple
from typing import Optional
from typing import Tuple

_NOTE_WIDTH = 100
_FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n')


class Column(NamedTuple):
    """A column of a printed table."""
    heading: str
    cell: Callable[[Dict[str, Any]], str]
    is_text: bool = False


class Table(NamedTuple):
    """Records and how to print them. The total is printed after the records."""
    records: List[Dict[str, Any]]
    columns: Tuple[Column, ...]
    total: Optional[Dict[str, Any]] = None


class Findings(NamedTuple):
    """The result of a command: full content for --json, and tables with notes for the others."""
    content: Dict[str, Any]
    tables: List[Table]
    notes: List[str]


def _rows(table):
    """Returns the cells of a table, headings first and the total last."""
    records = table.records + ([table.total] if table.total else [])
    return [[column.heading for column in table.columns]] + [
        [column.cell(record) for column in table.columns] for record in records]


def _aligned(table):
    """Returns the rows of a table, with the cells of each column padded to one width."""
    rows = _rows(table)
    widths = [max(map(len, cells)) for cells in zip(*rows)]
    return [[cell.ljust(width) if column.is_text else cell.rjust(width)
             for cell, width, column in zip(row, widths, table.columns)] for row in rows]


def to_text(report):
    """Returns aligned tables, then the notes."""
    tables = ['\n'.join('  '.join(row).rstrip() for row in _aligned(table))
              for table in report.tables]
    return '\n\n'.join(tables + [textwrap.fill(note, _NOTE_WIDTH) for note in report.notes])


def to_markdown(report):
    """Returns Markdown tables, then the notes."""
    tables = []
    for table in report.tables:
        lines = [f"| {' | '.join(row)} |" for row in _aligned(table)]
        rule = '|'.join('---' if column.is_text else '--:' for column in table.columns)
        tables.append('\n'.join([lines[0], f'|{rule}|', *lines[1:]]))
    return '\n\n'.join(tables + report.notes)


def to_json(report):
    """Returns the full content as JSON."""
    return json.dumps(report.content, indent=2)


class CsvWriter:
    """Writes rows to a CSV file, protected against formula injection in spreadsheets.

    Text that begins with = + - @, a tab or a line break gets an apostrophe in front (OWASP, CSV
    injection). Numbers are unchanged.

    Args:
      file: text file to write to.
      **options: of csv.writer.
    """

    def __init__(self, file, **options):
        self._writer = csv.writer(file, **options)

    def writerow(self, cells):
        self._writer.writerow(
            [f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
             for cell in cells])


def to_csv(report):
    """Returns the records of the last table as CSV; names of nested values are joined with '_'."""
    rows = [dict(_flat(record)) for record in report.tables[-1].records]
    file = io.StringIO()
    writer = CsvWriter(file, lineterminator='\n')
    for cells in (rows[0].keys(), *(row.values() for row in rows)):
        writer.writerow(cells)
    return file.getvalue().rstrip('\n')


def _flat(record, prefix=''):
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{name}_')
        else:
            yield prefix + name, shape_cell(value) if isinstance(value, tuple) else value


FORMATTERS = {'json': to_json, 'csv': to_csv, 'markdown': to_markdown}


def shape_cell(shape):
    return 'x'.join(str(size) for size in shape)
