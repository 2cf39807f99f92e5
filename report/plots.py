"""Draws the figures of a report with matplotlib, as SVG elements for the page.

Text, axes and curves use colors of the page, so that a figure fits its light and dark styles.
"""
import io
import re
import warnings

import numpy as np

try:
    import matplotlib
except ImportError:  # optional: training does not need it
    matplotlib = None

MAX_POINTS = 600           # per curve; longer curves are averaged down to this
# Placeholders for page colors, which report.html.j2 defines for the light and dark styles.
PALETTE = tuple(f'#0102f{index}' for index in range(1, 7))
_TEXT = '#010203'
_PAGE_COLORS = {_TEXT: 'currentColor', **{
    color: f'var(--curve-{index})' for index, color in enumerate(PALETTE, 1)}}
_STYLE = {
    'font.family': 'sans-serif', 'font.size': 10, 'svg.fonttype': 'none',
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
    'grid.alpha': 0.25, 'grid.linewidth': 0.8, 'lines.linewidth': 1.6, 'legend.frameon': False,
    'figure.facecolor': 'none', 'axes.facecolor': 'none', 'savefig.facecolor': 'none',
    'image.interpolation': 'none',
    **{name: _TEXT for name in ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color',
                                'ytick.color', 'grid.color')}}


def curves(lines, x_label, y_label, is_log=False):
    """Draws curves over steps or epochs.

    Args:
      lines: list of (label, xs, ys, color, style). The style is a line style of matplotlib, with
        'o' appended for markers. Points whose y is None or not finite are omitted.
      x_label, y_label: labels of the axes.
      is_log: whether the y axis is logarithmic.

    Returns:
      an `<svg>` element, str; None if no line has a point.
    """
    lines = [(label, *_thinned(xs, ys), color, style) for label, xs, ys, color, style in lines]
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return None

    def draw(axes):
        for label, xs, ys, color, style in lines:
            has_marks = style.endswith('o') or len(xs) == 1
            axes.plot(xs, ys, linestyle=style.rstrip('o'), color=color, label=_plain(label),
                      marker='o' if has_marks else None, markersize=3.5)
        if is_log:
            axes.set_yscale('log')
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            axes.legend(fontsize=9, labelcolor=_TEXT)

    return _svg(draw, (7.2, 3.4))


def heatmap(values, row_names, column_names, x_label='', y_label='', digits=2, top=None):
    """Draws a matrix as colors, from 0 to the largest value (or `top`).

    Args:
      values: float [rows, columns].
      row_names, column_names: labels of the ticks.
      x_label, y_label: labels of the axes.
      digits: decimal places of the numbers in the cells; cells with the value 0 stay empty.
      top: value of the darkest color; None for the largest value.

    Returns:
      an `<svg>` element, str.
    """
    values = np.asarray(values, float)
    rows, columns = values.shape

    def draw(axes):
        cells = axes.imshow(values, aspect='auto', cmap='Blues', vmin=0.0,
                            vmax=top or values.max() or 1.0)
        axes.set_xticks(range(columns))
        axes.set_xticklabels([_plain(name) for name in column_names], fontsize=8,
                             rotation=90 if columns > 8 else 0)
        axes.set_yticks(range(rows))
        axes.set_yticklabels([_plain(name) for name in row_names], fontsize=8)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(False)
        for row, column in np.argwhere(values > 0):
            value = values[row, column]
            axes.text(column, row, f'{value:.{digits}f}', ha='center', va='center', fontsize=7,
                      color=_text_on(cells.to_rgba(value)[:3]))

    return _svg(draw, (min(11.0, 2.2 + 0.36 * columns), min(11.0, 1.4 + 0.26 * rows)))


def _svg(draw, size):
    """Returns an `<svg>` element with one pair of axes, filled by `draw`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # matplotlib warns about characters that its font lacks, but the page's font has them.
        warnings.simplefilter('ignore')
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        figure.tight_layout()
        file = io.StringIO()
        figure.savefig(file, format='svg', metadata={
            'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    return _for_page(file.getvalue())


def _for_page(svg):
    """Returns an SVG element for the page: no header, metadata or ids; the page's colors and font.
    """
    svg = svg[svg.index('<svg'):].strip()
    svg = re.sub(r'<metadata>.*?</metadata>|<style type="text/css">.*?</style>', '', svg,
                 flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', '<g', svg)
    svg = re.sub(r'font: ([^;"]*px) [^;"]*', r'font: \1 system-ui, sans-serif', svg)
    svg = re.sub(r'^<svg ', '<svg aria-hidden="true" ', svg)
    for placeholder, color in _PAGE_COLORS.items():
        svg = svg.replace(placeholder, color)
    return svg


def _text_on(color):
    """Returns 'black' or 'white', whichever is more readable on an RGB color in [0, 1]."""
    color = np.asarray(color)
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    # At a relative luminance of 0.179, black and white have the same contrast (WCAG 2).
    return 'black' if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else 'white'


def _plain(name):
    """Escapes a name that matplotlib would parse as a formula or omit from the legend."""
    name = str(name).replace('$', r'\$')
    return f'\u200b{name}' if name.startswith('_') else name


def _thinned(xs, ys):
    """Returns xs and ys of the points with finite values, averaged down to MAX_POINTS points."""
    points = np.array([(x, y) for x, y in zip(xs, ys) if y is not None], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    if len(points) <= MAX_POINTS:
        return points[:, 0], points[:, 1]
    parts = np.array_split(points, MAX_POINTS)
    return tuple(np.array([part[:, axis].mean() for part in parts]) for axis in (0, 1))
