"""Figures for a page: any name, any number of points, and nothing that others could stumble on."""
import dataclasses
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from config import run_config
from report import curves
from report import page
from report import plots
from report import run_data
from report import sections

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
        assert 'currentColor' in svg and 'var(--curve-1)' in svg and '<style' not in svg
        assert not re.search('#0{6}|#01|black', svg)
    first, second = (set(re.findall(r'id="([^"]+)"', svg)) for svg in svgs)
    assert first and not first & second


def luminance(color):
    """The relative luminance of '#rrggbb', as WCAG 2 defines it."""
    channels = [int(color[start:start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
              for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(color, other):
    lighter, darker = sorted((luminance(color), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_colors_are_readable_on_dark_and_light_screens():
    text = page.render('', '', [], [])
    light, dark = (dict(re.findall(r'--([\w-]+): (#\w{6})', scheme))
                   for scheme in re.findall(r':root {(.*?)}', text, re.DOTALL))
    assert set(light) == set(dark) and luminance(dark['paper']) < 0.02 < luminance(light['paper'])
    for colors in light, dark:
        for paper in 'paper', 'card':
            for name in 'ink', 'soft', 'accent', 'good':
                assert contrast(colors[name], colors[paper]) >= 4.5, name
        curve_names = [f'curve-{index}' for index in range(1, len(plots.PALETTE) + 1)]
        # WCAG 2.1 demands 3 of what a figure cannot do without; borders only guide the eye.
        assert all(contrast(colors[name], colors['paper']) >= 3 for name in curve_names)
        assert contrast(colors['line'], colors['paper']) >= 1.8
        assert len({colors[name] for name in curve_names}) == len(plots.PALETTE)


def test_numbers_in_a_matrix_are_readable_on_every_shade():
    from matplotlib import cm
    from matplotlib import colors
    for share in np.linspace(0, 1, 101):
        shade = cm.Blues(share)[:3]
        ink = {'black': '#000000', 'white': '#ffffff'}[plots._text_on(shade)]
        assert contrast(ink, colors.to_hex(shade)) >= 4.5


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
    assert {chart.y_label for chart in curves.CHARTS} >= {'cross entropy', 'top-1', 'top-5'}
    steps = [{'step': step, 'epoch': step / 2, 'loss': 2.0, 'cross_entropy': 1.5,
              'learning_rate': 0.1} for step in (1, 2)]
    runs = [run_data.Run(name, '/', None, [], steps, []) for name in ('first', 'other')]
    rate, loss = curves.figures(runs)
    assert {'first: loss', 'other: loss'} <= set(texts(loss.svg))
    assert 'first: without weight decay' not in texts(loss.svg)
    assert {'first', 'other'} <= set(texts(rate.svg)) and rate.caption == 'Learning rate'
    assert all(f'var(--curve-{index})' in rate.svg for index in (1, 2))
    rate, loss = curves.figures(runs[:1])
    assert {'loss', 'without weight decay'} <= set(texts(loss.svg))
    assert isinstance(curves.figures([runs[0]._replace(steps=[])]), str)


def test_only_comparable_figures_share_an_axis():
    """No loss with label smoothing or weight decay stands beside one of validation."""
    for chart in curves.CHARTS:
        keys = {curve.key for curve in chart.curves}
        if any(curve.weights for curve in chart.curves):
            assert not keys & {'loss', 'l2_loss'}
            # The field of a training event that has this name is smoothed.
            assert all(curve.weights for curve in chart.curves if curve.key == 'cross_entropy')


def run_of(tmp_path, *events, **settings):
    """The `run_data.Run` of a configuration and of (time, event, fields)."""
    run_config.from_values({'data_dir': 'synthetic', 'model_dir': str(tmp_path), 'train_steps': 4,
                            **settings}).save()
    required = {'run_start': dict(mode='train_and_eval', model_name='x', step=0, total_steps=4),
                'train': dict(step=1, loss=2.0, top_1=0.1, cross_entropy=1.5),
                'train_stop': dict(step=4, images_per_sec=1.0),
                'eval': dict(step=4, weights='raw', top_1=0.1),
                'run_stop': dict(step=4, status='finished')}
    with open(tmp_path / 'results.jsonl', 'w') as file:
        for secs, name, *fields in events:
            event = {'event': name, 'time': secs, **required[name], **dict(*fields)}
            file.write(json.dumps(event) + '\n')
    return run_data.load(str(tmp_path))


BESIDE = ({'mode': 'eval'},)


@pytest.mark.parametrize('events, secs', [
    # A session that is interrupted, an hour's pause, one that is killed, another pause, the last.
    ([(0, 'run_start'), (50, 'train'), (60, 'train_stop'), (61, 'run_stop'),
      (3661, 'run_start'), (3690, 'train'),
      (9000, 'run_start'), (9010, 'train'), (9040, 'eval'), (9050, 'train'), (9050, 'train_stop'),
      (9080, 'run_stop')], 60 + 29 + 50),
    # An evaluation job beside the run, and one a day later.
    ([(0, 'run_start'), (10, 'run_start', *BESIDE), (20, 'train'), (25, 'eval'), (30, 'train'),
      (40, 'train_stop'), (41, 'run_stop'), (70, 'eval'), (71, 'run_stop'),
      (90000, 'run_start', *BESIDE), (90500, 'eval'), (90501, 'run_stop')], 40),
    # A run that was finished already.
    ([(0, 'run_start'), (30, 'train_stop'), (31, 'run_stop'), (99, 'run_start'),
      (100, 'run_stop')], 30),
    # Only evaluated here.
    ([(0, 'run_start', *BESIDE), (50, 'eval'), (51, 'run_stop')], 0),
    # A clock that was set back.
    ([(1000, 'run_start'), (1010, 'train'), (500, 'train'), (520, 'train_stop')], 30)])
def test_hours_are_those_of_training_sessions(tmp_path, events, secs):
    assert run_of(tmp_path, *events).secs == secs


def test_an_evaluation_job_is_neither_the_end_nor_the_machine_of_a_run(tmp_path):
    start, stop = {'environment': {'host': 'trainer'}}, {'mode': 'train', 'status': 'interrupted'}
    run = run_of(tmp_path, (0, 'run_start', start), (1, 'train'), (2, 'run_stop', stop),
                 (3, 'run_start', {'mode': 'eval', 'environment': {'host': 'other'}}),
                 (4, 'run_stop', *BESIDE))
    assert run.status == 'interrupted' and run.environment['host'] == 'trainer'


def test_changed_settings_are_what_the_user_gave(tmp_path):
    run = run_of(tmp_path, (0, 'run_start'), eval_batch_size=9, random_flip=True, batch_size=32)
    content = sections.configuration([run])
    flags = ['--data_dir', '--batch_size', '--eval_batch_size', '--model_dir', '--train_steps']
    assert [row[0] for row in content['different'].rows] == flags
    assert [name for name, _ in content['groups']] == [
        'data', 'model', 'optimization', 'run', 'runtime']
    marked = [row[0] for _, table in content['groups']
              for row, is_marked in zip(table.rows, table.is_marked) if is_marked]
    assert marked == flags
    # An earlier version: what may have been derived is not called changed.
    old = run._replace(config=dataclasses.replace(run.config, changed_settings=None))
    assert [row[0] for row in sections.configuration([old])['different'].rows] == [
        flag for flag in flags if flag != '--eval_batch_size']


def test_training_without_label_smoothing_is_comparable_in_old_runs(tmp_path):
    for label_smoothing, value in (0.0, 1.5), (0.1, None):
        run = run_of(tmp_path, (0, 'run_start'), (1, 'train'), label_smoothing=label_smoothing)
        assert run.steps[0].get('unsmoothed_cross_entropy') == value
