"""Figures for a page: any name, any number of points, and nothing that others could stumble on."""
import re
import xml.etree.ElementTree

import numpy as np

from report import curves
from report import page
from report import plots
from report import run_data

BLUE = plots.PALETTE[0]


def texts(svg):
    root = xml.etree.ElementTree.fromstring(svg)
    return [element.text for element in root.iter('{http://www.w3.org/2000/svg}text')]


def test_names_are_taken_as_they_are():
    names = ['$5 or $6', '_hidden', '\u4e2d\u6587', '<b> & "quotes"']
    svg = plots.heatmap(np.eye(4), names, names, digits=0)
    found = [text.replace('\u200b', '') for text in texts(svg)]
    assert all(found.count(name) == 2 for name in names) and found.count('1') == 4
    lines = [(name, [0, 1], [1.0, index], BLUE, '-') for index, name in enumerate(names)]
    found = [text.replace('\u200b', '') for text in texts(plots.curves(lines, 'epoch', 'loss'))]
    assert set(names) <= set(found)


def test_a_curve_of_many_points_is_small_and_one_without_any_is_none():
    steps = range(100000)
    svg = plots.curves([('', steps, np.sin(np.arange(100000) / 9000), BLUE, '-')], 'x', 'y')
    assert len(svg) < 60000
    assert plots.curves([('', [1, 2], [None, np.nan], BLUE, '-')], 'x', 'y') is None
    assert plots.curves([('', [1], [0.5], BLUE, '-')], 'x', 'y', is_log=True)


def test_text_has_the_color_of_the_page_and_names_are_unique():
    svgs = [plots.curves([('', [1, 2], [3, 4], BLUE, '-')], 'x', 'y') for _ in range(2)]
    for svg in svgs:
        assert 'currentColor' in svg and BLUE in svg and '<style' not in svg
        assert not re.search('#0{6}|black', svg)
    first, second = (set(re.findall(r'id="([^"]+)"', svg)) for svg in svgs)
    assert first and not first & second


def test_what_is_no_html_is_escaped():
    table = page.HtmlTable(['<a>', 'n'], [['<b>', '1,000'], ['c', None]], '"Caption"',
                           is_marked=[True, False])
    figure = page.Figure('<svg></svg>', 'a "figure"')
    text = page.render('<title>', 'a & b', table, [
        page.Section('one', 'One <b>', 'curves', [figure]),
        page.Section('two', 'Two', 'environment', 'There is <none>.')])
    assert '<th scope="col">&lt;a&gt;</th><th scope="col" class="number">n</th>' in text
    assert '<tr class="best"><td>&lt;b&gt;</td><td class="number">1,000</td></tr>' in text
    assert '<tr><td>c</td><td class="number"></td></tr>' in text
    assert '<caption>&#34;Caption&#34;</caption>' in text
    assert '<h1>&lt;title&gt;</h1>' in text and '<p class="soft">a &amp; b</p>' in text
    assert '<a href="#one">One &lt;b&gt;</a>' in text and '<p>There is &lt;none&gt;.</p>' in text
    assert ('<div role="img" aria-label="a &#34;figure&#34;"><svg></svg></div>\n'
            '<figcaption>a &#34;figure&#34;</figcaption>') in text


def test_a_comparison_has_a_curve_of_each_run():
    """Its names, and a color of each run; what only a single run has room for is left out."""
    assert {chart.y_label for chart in curves.CHARTS} >= {'loss', 'top-1', 'top-5'}
    steps = [{'step': step, 'epoch': step / 2, 'loss': 2.0, 'cross_entropy': 1.5,
              'learning_rate': 0.1} for step in (1, 2)]
    runs = [run_data.Run(name, '/', None, [], steps, []) for name in ('first', 'other')]
    loss, rate = curves.figures(runs)
    assert {'first: training', 'other: training'} <= set(texts(loss.svg))
    assert 'first: training, without L2' not in texts(loss.svg)
    assert {'first', 'other'} <= set(texts(rate.svg)) and rate.caption == 'Learning rate'
    assert all(color in rate.svg for color in plots.PALETTE[:2])
    loss, rate = curves.figures(runs[:1])
    assert {'training', 'training, without L2'} <= set(texts(loss.svg))
    assert isinstance(curves.figures([runs[0]._replace(steps=[])]), str)
