"""What one sees of a run: on a terminal, in TensorBoard, in results.jsonl and in a report."""
import fcntl
import html.parser
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios

from conftest import ROOT
from conftest import TINY
import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from report import classified_images
from report import html_report
from report import run_data
from run_log import class_metrics
from run_log import event_log
from training import summaries

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome'))), None)


# A terminal ---------------------------------------------------------------------------------------

def run_on_terminal(columns, *command):
    """(exit code, what a command wrote to its terminal, str)."""
    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, *command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    output = b''
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not part:
            break
        output += part
    os.close(terminal)
    return os.waitpid(process, 0)[1], output.decode()


def screen(output):
    """The lines that are left to be read when all is written; carriage returns go back."""
    lines = []
    for line in output.split('\n'):
        cells = []
        for part in line.rstrip('\r').split('\r'):
            cells[:len(part)] = part
        lines.append(''.join(cells).rstrip())
    return lines


def test_a_terminal_has_a_live_line_and_a_log_above_it(digits_dir, tmp_path):
    status, output = run_on_terminal(
        140, 'main.py', f'--data_dir={digits_dir}', f'--model_dir={tmp_path}', *TINY,
        '--train_steps=40', '--steps_per_eval=20', '--log_step_count_steps=5', '--log_input_stall',
        '--num_eval_images=100', '--save_checkpoints_steps=10')
    assert status == 0, output
    live = re.findall(
        r'\repoch (\d\.\d\d)/0\.32 step (\d+)/40 loss \d+\.\d{3} \(smoothed \d+\.\d{3}\) '
        r'top-1 \d\.\d{3} lr \S+ \d+(?:\.\d)? images/s input stall \d+% '
        r'ETA \d:\d\d:\d\d +(\d+)%\|', output)
    steps = [int(step) for _, step, _ in live]
    # Steps may come faster than a terminal is painted.
    assert steps == sorted(steps) and steps[0] < 20 < steps[-1] <= 40 and len(steps) >= 2
    for epoch, step, percent in live:
        assert float(epoch) == pytest.approx(int(step) / 125, abs=0.006)
        assert int(percent) == pytest.approx(int(step) * 2.5, abs=1)

    lines = [line for line in screen(output) if line]
    timed = [line for line in lines if re.match(r'\d\d:\d\d:\d\d  ', line)]
    last, = [line for line in timed if '  step ' in line and 'images/s' in line]
    # The device sees the evaluation graph for the first time, once.
    assert sum('Compiling the evaluation graph' in line and ' took ' in line for line in timed) == 1
    # One line stays of the training, and none of the live line.
    assert 'step 40/40' in last
    assert sum('weights: top-1' in line for line in timed) == 4
    assert not any('|' in line for line in lines)
    table = lines[lines.index(timed[-1]) + 1:]
    assert [line.split()[0] for line in table] == ['step', '20', '40', 'Best:']
    assert sum(line.endswith('<- best') for line in table) == 1
    assert re.fullmatch(rf'Best: step \d+, top-1 \S+, archived as {tmp_path}/archive/model\.ckpt-'
                        r'\d+', table[-1])


# TensorBoard -------------------------------------------------------------------------------------

def summaries_of(folder):
    """Tag -> list of (step, value) of the event files of a folder."""
    found = {}
    for path in sorted(tf.gfile.Glob(f'{folder}/events.out.tfevents.*')):
        for event in tf.train.summary_iterator(path):
            for value in event.summary.value:
                kind = value.WhichOneof('value')
                found.setdefault(value.tag, []).append((event.step, getattr(value, kind)))
    return found


def test_tensorboard_is_shown_everything(trained_dir):
    tags = summaries_of(trained_dir)
    for tag in ('main/loss', 'main/cross_entropy', 'main/top_1', 'main/top_5',
                'main/learning_rate', 'optimizer/cross_entropy_smoothed', 'optimizer/l2_loss',
                'optimizer/gradient_norm', 'progress/epoch'):
        steps, values = zip(*tags[tag])
        assert steps == (2, 4, 6) and np.isfinite(values).all(), tag
    assert all(value > 0 for _, value in (
        tags['progress/images_per_sec'] + tags['optimizer/gradient_norm']))
    for index in range(3):
        loss, parts = tags['main/loss'][index][1], [
            tags[f'optimizer/{name}'][index][1] for name in ('cross_entropy_smoothed', 'l2_loss')]
        assert loss == pytest.approx(sum(parts), rel=1e-5) and parts[1] > 0

    blocks = {tag.split('/')[0] for tag in tags if tag.startswith('routing_')}
    assert len(blocks) == 3
    for block in blocks:
        for expert in range(4):
            found = {name: tags[f'{block}/expert_{expert}/{name}'][0][1]
                     for name in ('mean_weight', 'entropy', 'weights', 'entropies')}
            assert 0 < found['mean_weight'] < 1 and 0 < found['entropy'] <= 1
            for name, mean in (('weights', 'mean_weight'), ('entropies', 'entropy')):
                histogram = found[name]
                assert histogram.num == sum(histogram.bucket) == 32
                assert histogram.sum / 32 == pytest.approx(found[mean], rel=1e-5)

    (_, image), = tags['input_images']
    picture = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert picture.shape == (4 * 32 + 6, 4 * 32 + 6, 3)


def test_tensorboard_opens_on_loss_accuracy_and_learning_rate(trained_dir):
    """And draws training and validation of the same quantity in one chart; experts come last."""
    training, raw, averaged = (
        {tag for tag, values in summaries_of(f'{trained_dir}{folder}').items()
         if isinstance(values[0][1], float)} for folder in ('', '/eval_raw', '/eval_ema'))
    # TensorBoard sorts the groups, and opens the first two.
    groups = sorted({tag.split('/')[0] for tag in training | raw | averaged})
    assert groups[0] == 'main'
    assert [group.startswith('routing_') for group in groups] == (
        [False] * (len(groups) - 3) + [True] * 3)
    shared = {'main/top_1', 'main/top_5', 'main/cross_entropy'}
    assert {tag for tag in training if tag.startswith('main/')} == shared | {
        'main/loss', 'main/learning_rate'}
    assert training & raw == training & averaged == shared
    assert raw == averaged == shared | {'progress/validation_images'}


def test_every_tag_is_in_the_table(trained_dir):
    for run, folder in (('.', trained_dir), ('eval_raw, eval_ema', f'{trained_dir}/eval_ema')):
        found = {re.sub('(?<=_)block_[0-9]+', '<block>', re.sub('expert_[0-9]+', '<expert>', tag))
                 for tag in summaries_of(folder)}
        assert set(summaries.TAGS[run]) - found <= {
            'progress/input_stall', 'optimizer/loss_scale', 'optimizer/skipped_steps'}
        assert found <= set(summaries.TAGS[run])


@pytest.mark.parametrize('weights', ['raw', 'ema'])
def test_evaluations_are_shown_with_their_confusion(trained_dir, weights):
    folder = class_metrics.evaluation_folder(trained_dir, weights)
    tags = summaries_of(folder)
    expected = {event['step']: event for event in event_log.read(trained_dir)
                if event['event'] == 'eval' and event['weights'] == weights}
    for name in ('top_1', 'top_5', 'cross_entropy'):
        assert dict(tags[summaries.EVALUATION_TAGS[name]]) == pytest.approx(
            {step: event[name] for step, event in expected.items()})
    counted = class_metrics.read_evaluations(folder)
    assert sorted(counted) == sorted(expected) == [3, 6]
    for step, found in counted.items():
        matrix = found['confusion_matrix']
        assert matrix.sum(axis=1).tolist() == found['class_images'].tolist() == [100] * 10
        assert np.diag(matrix).tolist() == found['class_correct'].tolist()
        assert matrix.sum(axis=0).tolist() == found['class_predicted'].tolist()
        assert np.trace(matrix) / 1000 == pytest.approx(expected[step]['top_1'])
    (_, picture), *_ = tags['confusion_matrix/picture']
    assert picture.encoded_image_string.startswith(b'\x89PNG')
    (_, table), *_ = tags['confusion_matrix/table']
    rows = tf.make_ndarray(table).item().decode().splitlines()
    numbers = [[int(cell) for cell in row.split('|')[2:-1]] for row in rows[2:]]
    assert numbers == counted[3]['confusion_matrix'].tolist() and 'seven' in rows[0]


@pytest.fixture(scope='module')
def unseen(run, tmp_path_factory):
    """(model_dir of a run with --skip_host_call, what it logged); an epoch has 2.5 steps."""
    model_dir = tmp_path_factory.mktemp('unseen')
    completed = run('main.py', '--mode=train', '--data_dir=synthetic', f'--model_dir={model_dir}',
                    *TINY, '--num_train_images=80', '--train_steps=7', '--log_step_count_steps=3',
                    '--skip_host_call')
    assert completed.returncode == 0, completed.stderr
    return str(model_dir), completed.stderr


def test_skip_host_call_leaves_training_out_of_tensorboard(unseen):
    model_dir, log = unseen
    assert not summaries_of(model_dir)
    steps = [event for event in event_log.read(model_dir) if event['event'] == 'train']
    # The last step is an event as well.
    assert [event['step'] for event in steps] == [3, 6, 7]
    assert all('gradient_norm' not in event and event['loss'] > 0 for event in steps)
    graph, = [event.graph_def for path in tf.gfile.Glob(f'{model_dir}/events*')
              for event in tf.train.summary_iterator(path) if event.graph_def]
    nodes = {node.name for node in tf.GraphDef.FromString(graph).node}
    assert nodes and not any('watched' in name for name in nodes)


def test_a_log_says_what_runs_from_the_first_seconds_on(unseen):
    """Not a terminal: plain lines."""
    model_dir, log = unseen
    assert '\r' not in log
    lines = log.splitlines()
    assert all(re.match(r'\d\d:\d\d:\d\d  ', line) for line in lines)
    lines = [line[10:] for line in lines]
    assert lines[0].startswith(f'TensorFlow {tf.__version__} is loaded.')
    names = ['Run', 'Software', 'Model', 'Classes', 'Images', 'Steps', 'Optimizer', 'Precision',
             'Output']
    assert [line.split()[0] for line in lines[1:10]] == names
    assert lines[9].split()[1] == model_dir and '659 thousand parameters' in lines[3]
    stages = ['Building the training graph', 'Initializing the variables',
              'Compiling the graph in the first step']
    said = [line for line in lines if line.startswith(tuple(stages))]
    for index, stage in enumerate(stages):
        assert said[2 * index] == f'{stage}.'
        assert re.fullmatch(rf'{stage} took [0-9.:]+( s)?\.', said[2 * index + 1])
    # The first step, those that are due, and the last one.
    pattern = r'step (\d)/7  epoch \d\.\d\d  loss \d+\.\d{4} \(smoothed \d+\.\d{4}\)  '
    assert [match.group(1) for match in map(re.compile(pattern).match, lines) if match] == [
        '1', '3', '6', '7']
    assert lines[-1] == f'Trained to step 7 of 7: {model_dir}/model.ckpt-7'


# results.jsonl -----------------------------------------------------------------------------------

def test_every_event_and_field_is_in_the_schema(trained_dir):
    events = event_log.read(trained_dir)
    names = [event['event'] for event in events]
    assert names[:2] == ['run_start', 'config'] and names[-1] == 'run_stop'
    assert events[-1]['status'] == 'finished'
    for event in events:
        _, fields = event_log.EVENTS[event['event']]
        assert set(event) <= {'event', 'time', *fields}, event
    config = events[1]
    assert config['run']['train_steps'] == 6 and config['class_names'][7] == 'seven'
    assert events[0]['environment']['tensorflow'] == tf.__version__


def test_the_end_of_each_epoch_is_an_event(unseen):
    epochs = [event for event in event_log.read(unseen[0]) if event['event'] == 'epoch']
    assert [(event['epoch'], event['step']) for event in epochs] == [(1, 3), (2, 5)]
    assert all(event['images_per_sec'] > 0 for event in epochs)


# The report --------------------------------------------------------------------------------------

class Page(html.parser.HTMLParser):
    """A page as lists of what is in it; fails where tags do not close."""

    VOID = {'meta', 'img', 'br', 'link'}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if 'id' in attrs:
            self.ids.append(attrs['id'])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else '', data))

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text_in(self, tag):
        return [text.strip() for name, text in self.texts if name == tag and text.strip()]


def check(text):
    """The `Page`, if it needs nothing else and can be read by everybody."""
    page = Page(text)
    assert len(page.of('h1')) == 1 and page.of('html')[0]['lang'] == 'en'
    assert all(attrs['alt'] for attrs in page.of('img'))
    assert all(attrs['aria-label'] for attrs in page.of('div') if attrs.get('role') == 'img')
    assert len(page.ids) == len(set(page.ids))
    assert not page.of('script') and not page.of('link')
    for _, attrs in page.tags:
        for name in ('src', 'href', 'xlink:href'):
            assert attrs.get(name, '#').startswith(('#', 'data:'))
        if attrs.get('href', '').startswith('#'):
            assert attrs['href'][1:] in page.ids
    assert not re.search(r'url\((?!#)', text)
    assert 'prefers-color-scheme: dark' in text and '@media print' in text
    return page


SECTIONS = ['Curves', 'Evaluations', 'Classes', 'Most confident mistakes', 'Experts',
            'Configuration', 'Environment']


@pytest.fixture(scope='module')
def report_path(run, trained_dir, tmp_path_factory):
    """The report of `trained_dir`."""
    path = tmp_path_factory.mktemp('report') / 'out.html'
    completed = run(
        '-m', 'report.html_report', f'{trained_dir}/', f'--output={path}', '--num_images=200')
    assert completed.returncode == 0, completed.stderr
    assert str(path) in completed.stdout
    return path


def test_a_report_of_a_run(report_path, trained_dir):
    text = report_path.read_text()
    page = check(text)
    assert page.text_in('h2') == SECTIONS
    labels = [attrs['aria-label'] for attrs in page.of('div') if attrs.get('role') == 'img']
    for words in ('Cross entropy without label smoothing', 'Training loss: cross entropy',
                  'Top-1 accuracy', 'Top-5 accuracy', 'Learning rate', 'Global gradient norm',
                  'Training speed', 'Confusion matrix', 'Mean routing weight',
                  'each class in block_'):
        assert any(words in label for label in labels), words
    cells = page.text_in('td')
    best = max((event for event in event_log.read(trained_dir) if event['event'] == 'eval'
                and event['weights'] == 'ema'), key=lambda event: event['top_1'])
    assert f"{best['top_1']:.2%}" in cells and f"{best['top_1']:.2%}" in page.text_in('dd')
    assert len([attrs for attrs in page.of('tr') if attrs.get('class') == 'best']) == 1
    assert {'seven', tf.__version__, 'efficientnet-condconv-b0-4e'} <= set(cells)
    assert page.text_in('h1') == page.text_in('title') == ['trained']
    assert page.text_in('h3') == ['Data', 'Model', 'Optimization', 'Run', 'Runtime']
    changed = text[text.index('Settings that the user changed'):text.index('<h3>Data')]
    given = {argument.split('=')[0] for argument in TINY} | {
        '--data_dir', '--model_dir', '--train_steps', '--steps_per_eval', '--log_step_count_steps',
        '--moving_average_decay'}
    assert set(re.findall('<code>(.*?)</code>', changed)) == given
    # An untrained network is wrong nine times of ten.
    assert len(page.of('img')) == classified_images.NUM_MISTAKES
    assert all(attrs['src'].startswith('data:image/jpeg;base64,') for attrs in page.of('img'))
    assert len(text) < 2e6


def test_runs_have_short_names_where_these_differ():
    assert run_data.short_names(['.', '/runs/a/']) == [os.path.basename(os.getcwd()), 'a']
    assert run_data.short_names(['x/run', 'y/run']) == ['x/run', 'y/run']


def test_every_run_has_its_curves_and_a_quick_look_is_not_the_best_of_them(trained_dir, tmp_path):
    runs = []
    for index in range(7):
        folder = shutil.copytree(trained_dir, tmp_path / f'run{index}')
        if index == 3:
            shutil.rmtree(folder / 'archive')
            with open(folder / event_log.RESULTS_FILE) as file:
                lines = [json.loads(line) for line in file]
            with open(folder / event_log.RESULTS_FILE, 'w') as file:
                for line in lines:
                    if line['event'] == 'eval':
                        line.update(num_images=3, top_1=1.0)
                    file.write(json.dumps(line) + '\n')
        runs.append(run_data.load(str(folder), f'run{index}'))
    text = html_report.write(runs)
    assert check(text).text_in('h1') == ['7 runs compared']
    labels = check(text).text_in('text')
    assert all(f'run{index}: training' in labels for index in range(7))
    # The first table is that of all runs.
    best = re.search('<tr class="best">.*?</tr>', text[:text.index('</table>')], re.S).group()
    assert 'run3' not in best


def test_runs_are_compared_and_lacking_images_are_told(trained_dir, tmp_path):
    other = shutil.copytree(trained_dir, tmp_path / 'other <run>')
    config = (other / 'config.json').read_text()
    (other / 'config.json').write_text(config.replace(
        '"base_learning_rate": 0.016', '"base_learning_rate": 0.5'))
    # A run that began anew and was killed at once.
    with open(other / event_log.RESULTS_FILE, 'a') as file:
        file.write('{"event": "run_start", "time": 1, "mode": "train", "model_name": "x", '
                   '"step": 0, "total_steps": 6}\n{"event": "tra')
    for name in ('eval_raw', 'eval_ema'):
        shutil.rmtree(other / name)
    runs = [run_data.load(path, name) for path, name in ((trained_dir, 'first'),
                                                    (str(other), 'other <run>'))]
    text = html_report.write(runs, data_dir=str(tmp_path / 'gone'), num_images=100)
    page = check(text)
    assert page.text_in('h1') == ['first, other <run>']
    assert 'Classes of other <run>' in page.text_in('h2')
    paragraphs = ' '.join(page.text_in('p'))
    assert paragraphs.count('not in ' + str(tmp_path / 'gone')) == 4 and not page.of('img')
    assert 'lack per-class counts' in paragraphs
    assert 'first: validation, averaged weights' in page.text_in('text')
    different = text[text.index('Settings that differ between'):text.index('<h3>Data')]
    assert '--base_learning_rate' in different and '--optimizer' not in different
    assert '<td class="number">0.5</td>' in different


@pytest.mark.parametrize('arguments, words', [
    ([], 'MODEL_DIR: not given'), (['/nowhere'], '/nowhere: has no run'),
    (['RUN', '--output=/nowhere/report.html'],
     'report.html: the directory /nowhere does not exist')])
def test_what_cannot_be_reported_is_one_sentence(run, trained_dir, arguments, words):
    arguments = [trained_dir if argument == 'RUN' else argument for argument in arguments]
    completed = run('-m', 'report.html_report', '--num_images=0', *arguments)
    assert completed.returncode == 1 and 'Traceback' not in completed.stderr
    line, = [line for line in completed.stderr.splitlines() if 'error:' in line]
    assert words in line


@pytest.mark.parametrize('package', ['matplotlib', 'jinja2'])
def test_without_its_packages_the_report_says_what_to_install(
        start, trained_dir, tmp_path, package):
    (tmp_path / f'{package}.py').write_text('raise ImportError()\n')
    process = start('-m', 'report.html_report', trained_dir, PYTHONPATH=os.pathsep.join(
        [str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    output, _ = process.communicate()
    assert process.returncode == 1 and 'Traceback' not in output
    line, = [line for line in output.splitlines() if 'error:' in line]
    assert package in line.lower() and 'requirements-report.lock' in line


@pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium; the DOM is tested all the same')
def test_a_browser_paints_the_report(report_path, tmp_path):
    """Top, dark and light: a page of the scheme's color with something on it, curves included."""
    for scheme, paper, blue in (('1', 255, (0, 114, 178)), ('0', 20, (74, 163, 223))):
        picture_path = tmp_path / f'{scheme}.png'
        subprocess.run(
            [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
             f'--blink-settings=preferredColorScheme={scheme}', '--window-size=1000,1400',
             f'--user-data-dir={tmp_path}/profile', f'--screenshot={picture_path}',
             f'file://{report_path}'], check=True, timeout=120, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        pixels = np.asarray(Image.open(picture_path).convert('RGB')).astype(int)
        assert pixels.shape == (1400, 1000, 3)
        assert abs(pixels[0, 0] - paper).max() <= 12
        assert (abs(pixels - pixels[0, 0]).max(axis=2) > 60).mean() > 0.01
        # The first color of the curves.
        assert (abs(pixels - np.array(blue)).max(axis=2) < 20).sum() > 200
