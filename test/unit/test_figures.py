"""Figures for a page: any name, any number of points, and nothing that others could stumble on."""
import re
import xml.etree.ElementTree

import numpy as np

from report import page
from report import plots

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


def test_text_has_the_colour_of_the_page_and_names_are_unique():
    svgs = [plots.curves([('', [1, 2], [3, 4], BLUE, '-')], 'x', 'y') for _ in range(2)]
    for svg in svgs:
        assert 'currentColor' in svg and BLUE in svg and '<style' not in svg
        assert not re.search('#0{6}|black', svg)
    first, second = (set(re.findall(r'id="([^"]+)"', svg)) for svg in svgs)
    assert first and not first & second


def test_what_is_no_html_is_escaped():
    text = page.table(['<a>', 'n'], [['<b>', '1,000'], [page.Html('<i>c</i>'), None]],
                      marks=['best', None])
    assert '&lt;a&gt;' in text and '&lt;b&gt;' in text and '<i>c</i>' in text
    assert '<tr class="best"><td>&lt;b&gt;</td><td class="number">1,000</td></tr>' in text
    assert page.figure(None, 'nothing') is None
