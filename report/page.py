"""Pieces of an HTML page that needs nothing but itself: no script, no other file."""
import base64
import html

_STYLE = '''
:root { --ink: #1d2330; --soft: #5d6676; --line: #d9dee6; --paper: #ffffff; --card: #f5f7fa;
  --accent: #0067b1; --good: #0a7d4f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #323a48; --paper: #14181f; --card: #1c222c;
    --accent: #62b2f5; --good: #55c795; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.5rem 5rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .8rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; } .soft { color: var(--soft); }
a { color: var(--accent); } code { font-size: .9em; overflow-wrap: anywhere; }
nav { margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.4rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0 0; padding: 0; }
.tiles div { background: var(--card); border-radius: .6rem; padding: .7rem .8rem; }
.tiles dt { color: var(--soft); font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.25rem; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.beside { display: grid; gap: 0 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.beside.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .4rem 0; }
th, td { padding: .32rem .8rem .32rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th.number, td.number { text-align: right; }
tr.best td { color: var(--good); font-weight: 600; }
tr.changed td { color: var(--accent); font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .9rem; }
figure svg { max-width: 100%; height: auto; display: block; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem;
  padding: 0; list-style: none; }
.pictures img { width: 100%; border-radius: .4rem; display: block; background: var(--card); }
.pictures span { font-size: .85rem; line-height: 1.35; display: block; margin-top: .3rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; } figure, tr, .tiles div, .pictures li { break-inside: avoid; }
  h2, h3 { break-after: avoid; } }
'''


class Html(str):
    """Text that is HTML already; all other text is escaped."""


def html_of(value):
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def joined(parts):
    """One after the other; what is None is left out."""
    return Html('\n'.join(html_of(part) for part in parts if part is not None))


def document(title, *parts):
    """A whole page; its headings of the second level, made by `section`, are listed at its top."""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html_of(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
            f'{joined(parts)}\n</body>\n</html>\n')


def contents(sections):
    """Links to sections, a list of (id, heading)."""
    links = joined(Html(f'<a href="#{name}">{html_of(heading)}</a>') for name, heading in sections)
    return Html(f'<nav aria-label="Contents">{links}</nav>')


def section(name, heading, *parts):
    return Html(f'<section id="{name}" aria-labelledby="{name}-heading">\n'
                f'<h2 id="{name}-heading">{html_of(heading)}</h2>\n{joined(parts)}\n</section>')


def heading(text, level=3):
    return Html(f'<h{level}>{html_of(text)}</h{level}>')


def paragraph(text, is_soft=False):
    return Html(f'<p{" class=soft" * is_soft}>{html_of(text)}</p>')


def code(text):
    return Html(f'<code>{html_of(text)}</code>')


def tiles(figures):
    """What is to be seen at once: a list of (name, value)."""
    return Html('<dl class="tiles">\n' + '\n'.join(
        f'<div><dt>{html_of(name)}</dt><dd>{html_of(value)}</dd></div>'
        for name, value in figures) + '\n</dl>')


def beside(*parts, is_wide=False):
    """Side by side where there is room."""
    parts = joined(Html(f'<div>{part}</div>') for part in parts if part is not None)
    return Html(f'<div class="beside{" wide" * is_wide}">{parts}</div>')


def table(headings, rows, caption='', marks=None):
    """A table.

    Args:
      headings: of the columns; a column whose cells are all numbers stands to the right.
      rows: lists of cells: text, numbers, or None for nothing.
      caption: what the table shows.
      marks: None, or for each row None or its class of style, 'best' or 'changed'.
    """
    is_number = [bool(rows) and all(cell is None or _is_number(cell) for cell in column)
                 for column in zip(*rows)] or [False] * len(headings)
    lines = ['<div class="scroll"><table>']
    if caption:
        lines.append(f'<caption>{html_of(caption)}</caption>')
    lines.append('<thead><tr>' + ''.join(
        f'<th scope="col"{_class("number" * right)}>{html_of(text)}</th>'
        for text, right in zip(headings, is_number)) + '</tr></thead>\n<tbody>')
    for row, mark in zip(rows, marks or [None] * len(rows)):
        lines.append(f'<tr{_class(mark)}>' + ''.join(
            f'<td{_class("number" * right)}>{"" if cell is None else html_of(cell)}</td>'
            for cell, right in zip(row, is_number)) + '</tr>')
    return Html('\n'.join([*lines, '</tbody></table></div>']))


def figure(svg, description):
    """A figure and what it shows, for those who see it and for those who do not; None for None."""
    if svg is None:
        return None
    text = html_of(description)
    return Html(f'<figure>\n<div role="img" aria-label="{text}">{svg}</div>\n'
                f'<figcaption>{text}</figcaption>\n</figure>')


def pictures(items):
    """A grid of JPEG files: a list of (bytes, description, what stands below)."""
    return Html('<ul class="pictures">\n' + '\n'.join(
        f'<li><img alt="{html_of(alt)}" src="data:image/jpeg;base64,'
        f'{base64.b64encode(content).decode()}"><span>{html_of(text)}</span></li>'
        for content, alt, text in items) + '\n</ul>')


def _class(name):
    return f' class="{name}"' if name else ''


def _is_number(cell):
    text = str(cell).replace(',', '').rstrip('%')
    try:
        float(text)
    except ValueError:
        return text == ''
    return True
