"""What a run says while one waits: header, stages, lines of a log, and when it will be over."""
import io
import itertools
import re
import types
from unittest import mock

from absl import logging
import pytest

from common import stages
from common.quantities import bytes_text
from common.quantities import count_text
from common.quantities import secs_text
from config import run_config
from runtime import npu
from training import header
from training import input_stall
from training import progress
from training.time_left import TimeLeft


@pytest.fixture
def lines():
    """The lines that are logged during a test, a list."""
    logged = []
    with mock.patch.object(logging, 'info', lambda text, *values: logged.append(text % values)):
        yield logged


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: `clock.secs` is what progress and time_left see."""
    found = types.SimpleNamespace(secs=100.0)
    monkeypatch.setattr('time.monotonic', lambda: found.secs)
    return found


def make_config(**values):
    return run_config.from_values({'data_dir': 'synthetic', 'model_dir': '/runs/x', **values})


@pytest.mark.parametrize('text, expected', [
    (bytes_text(0), '0 B'), (bytes_text(999), '999 B'), (bytes_text(3.1e9), '3.1 GB'),
    (bytes_text(999700), '1 MB'), (bytes_text(2e15), '2e+03 TB'), (count_text(12), '12'),
    (count_text(24013284), '24 million'), (count_text(413e6), '413 million'),
    (secs_text(0.44), '0.4 s'), (secs_text(9.96), '10.0 s'), (secs_text(59.4), '59 s'),
    (secs_text(3725.9), '1:02:05')])
def test_quantities(text, expected):
    assert text == expected


# The header --------------------------------------------------------------------------------------

def header_of(config, lines, step=0, **runtime):
    """Name of a line -> its text."""
    header.log(config, types.SimpleNamespace(**{
        'rank': 0, 'world_size': config.num_ranks, 'device_name': 'CPU', 'software': '',
        'precision': 'float32', **runtime}), step)
    return {line.split()[0]: line.split(None, 1)[1] for line in lines}


def test_the_header_says_what_will_run(lines):
    config = make_config(
        model_name='efficientnet-condconv-b0-8e', batch_size=64, train_epochs=10,
        num_eval_images=1000, obs_dir='obs://bucket', export_dir='/exports')
    found = header_of(config, lines, step=20, software='npu_bridge 1.15.0')
    assert len(found) == 9
    assert found['Run'] == 'training and evaluation on CPU'
    assert ', npu_bridge 1.15.0, Python 3.7' in found['Software']
    # The published figure for the multiply-adds, 413 million, has elementwise work as well.
    assert found['Model'] == ('efficientnet-condconv-b0-8e: 24 million parameters, 407 million '
                              'multiply-adds per image of 224x224 pixels')
    assert found['Classes'] == '1000'
    assert found['Images'] == '1281167 for training, 1000 for evaluation, from synthetic'
    assert found['Steps'].startswith(f'20 to {config.total_steps}, each of 64 images; 10 epochs of')
    assert found['Optimizer'] == (
        'rmsprop, learning rate 0.004; exponential, times 0.97 every 2.4 epochs; '
        'warm-up of 5 epochs; moving average 0.9999')
    assert found['Precision'] == 'float32'
    assert found['Output'] == ('/runs/x, SavedModel to /exports, copied to obs://bucket '
                               'at the end')


@pytest.mark.parametrize('values, expected', [
    (dict(augment_name='randaugment', input_image_size=32), 'at 32 pixels, about 35 %'),
    (dict(augment_name='randaugment', input_image_size=100), 'about 23 % of'),
    (dict(augment_name='randaugment', input_image_size=159), '76 % of the pixels are left'),
    (dict(augment_name='autoaugment', input_image_size=96), '224 pixels 3 % and 94 %.*relative'),
    (dict(augment_name='randaugment', input_image_size=160), None),
    (dict(augment_name='randaugment', input_image_size=32, augment_scale='relative'), None),
    (dict(augment_name='randaugment', input_image_size=32, randaug_magnitude=0.0), None),
    (dict(augment_name='randaugment', input_image_size=32, mode='eval'), None),
    (dict(input_image_size=32), None)])
def test_small_images_that_augmentation_blanks_are_told(lines, monkeypatch, values, expected):
    warnings = []
    monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
    header_of(make_config(**values), lines)
    assert len(warnings) == (expected is not None)
    assert expected is None or re.search(expected, warnings[0])


def test_the_header_of_an_evaluation_has_no_optimizer(lines, digits_dir):
    found = header_of(make_config(mode='eval', data_dir=digits_dir), lines)
    assert found['Run'] == 'evaluation on CPU' and 'Optimizer' not in found
    assert found['Classes'] == '10 (zero, one, two, three, ...)'
    assert found['Images'] == f'1000 for evaluation, from {digits_dir}'
    assert found['Batch'] == '128 images'


def test_only_rank_0_has_a_header(lines):
    assert not header_of(make_config(), lines, rank=1)


def test_a_dump_is_announced_with_its_size(lines):
    """Dumps of one step that were measured here: condconv-b0-8e, 10 classes and batch 4, and 1000
    classes and batch 2, in GB."""
    for classes, batch_size, measured in ((10, 4, 2.67), (1000, 2, 1.85)):
        lines.clear()
        text = header_of(make_config(
            npu_dump_data=True, dump_step='0|5-6', batch_size=batch_size, npu_profiling=True,
            num_label_classes=classes), lines)
        assert text['Profiles'] == '/runs/x/profiling'
        place, about, size, *rest = text['Dumps'].split()
        assert (place, about, rest) == (
            '/runs/x/dump:', 'about', 'GB for each of 3 steps and device'.split())
        assert float(size) == pytest.approx(measured, rel=0.1)


def test_the_release_of_npu_bridge(monkeypatch):
    release = types.SimpleNamespace(version='1.15.0')
    monkeypatch.setattr('pkg_resources.get_distribution', lambda name: release)
    assert npu.NPURuntime.software.fget(None) == 'npu_bridge 1.15.0'


# Stages and lines --------------------------------------------------------------------------------

def test_a_stage_says_that_it_runs_and_how_long_it_took(lines, clock):
    with stages.stage('Copying a to b'):
        assert lines == ['Copying a to b.']
        clock.secs += 75
    assert lines[1:] == ['Copying a to b took 0:01:15.']


def step_of(number):
    return progress.Progress(step=number, total_steps=99, epoch=0, total_epochs=1, loss=1.0,
                             top_1=0, learning_rate=1)


def test_a_log_has_the_first_step_and_is_never_silent_for_long(lines, clock):
    display = progress.Lines()
    for number in range(1, 100):
        if number in (1, 61):
            display.begin()
        elif number == 20:
            display.report(step_of(number))
            continue
        display.update(step_of(number))
        clock.secs += 1
    steps = [int(line.split()[1].split('/')[0]) for line in lines]
    # Step 20 is due; step 61 is the first one of a second session.
    assert steps == [1, 20, 51, 61, 91]


def test_an_evaluation_shows_its_rate_and_its_end(lines, clock):
    what = 'Evaluating step 7, ema weights:'
    with progress.evaluating(progress.Lines(), what, 100, 5050) as show:
        for number in range(52):
            # The first batch compiles the graph.
            clock.secs += 20 if number == 1 else 2
            show(number)
    assert lines[0] == f'{what}  500/5050 images  50.0 images/s  ETA 0:01:31'
    assert len(lines) == 4
    lines.clear()
    with progress.evaluating(progress.Lines(), 'x', 100, None) as show:
        show(0)
        clock.secs += 31
        show(1)
    assert lines == ['x  100 images  - images/s  ETA -']


def test_a_live_line_shows_an_evaluation_and_then_the_step_again(monkeypatch):
    shown = []
    monkeypatch.setattr(progress.LiveLine, '_columns', lambda self: 120)
    monkeypatch.setattr('tqdm.tqdm.set_description_str',
                        lambda self, text, refresh: shown.append((text.split()[:3], self.n)))
    live = progress.LiveLine(io.StringIO())
    live.update(step_of(33))
    with progress.evaluating(live, 'Evaluating step 33,', 10, 20) as show:
        show(1)
    live.close()
    assert [words for words, _ in shown] == [
        ['epoch', '0.00/1', 'step'], ['Evaluating', 'step', '33,'], ['epoch', '0.00/1', 'step']]


# When it will be over ----------------------------------------------------------------------------

def simulated_secs(config, step, save_secs, evaluation_secs):
    """Seconds from the end of a step to that of the run, by going through the run."""
    secs = config.total_steps - step
    start = last_save = config.segments[-1].step if config.segments else 0
    for earlier in range(start, config.total_steps):
        now = earlier + 1
        ends_round = config.ends_round(earlier, now)
        is_last = now == config.total_steps
        saves = ends_round or is_last or now - last_save >= config.run.save_checkpoints_steps
        if saves:
            last_save = now
        if now >= step:
            secs += save_secs * saves
            secs += evaluation_secs * (config.evaluates and (ends_round or is_last))
    return secs


@pytest.mark.parametrize('mode', ['train', 'train_and_eval'])
@pytest.mark.parametrize('save_steps, eval_steps', [
    (3, 7), (7, 7), (7, 3), (100, 8), (6, 48), (6, 100)])
def test_the_time_left_has_all_saves_and_evaluations(clock, mode, save_steps, eval_steps):
    config = make_config(mode=mode, train_steps=48, save_checkpoints_steps=save_steps,
                         steps_per_eval=eval_steps)
    left = TimeLeft(config)
    assert left.secs(8, steps_per_sec=2) == 20
    for secs, kind in itertools.product((90, 10, 10), (left.SAVE, left.EVALUATION)):
        with left.measured(kind):
            clock.secs += secs * (1 if kind == left.SAVE else 100)
    for step in range(1, 49):
        assert left.secs(step, steps_per_sec=1) == simulated_secs(config, step, 10, 1000), step


@pytest.mark.parametrize('mode', ['train', 'train_and_eval'])
@pytest.mark.parametrize('save_steps', [3, 7, 100])
@pytest.mark.parametrize('resumed_at, batch_size, eval_steps', [
    (6, 48, None), (7, 48, None), (25, 20, None), (25, 64, 9)])
def test_the_time_left_of_a_run_that_goes_on_with_another_batch_size(
        clock, mode, save_steps, resumed_at, batch_size, eval_steps):
    """Its rounds, of 5 epochs, end where the images say, not where the steps do."""
    values = dict(mode=mode, num_train_images=96, train_epochs=23.0, steps_per_eval=eval_steps,
                  save_checkpoints_steps=save_steps)
    begun = make_config(**values, batch_size=32).continued(None, 0)
    config = make_config(**values, batch_size=batch_size).continued(begun, resumed_at)
    assert config.position_offset
    left = TimeLeft(config)
    for kind, secs in ((left.SAVE, 10), (left.EVALUATION, 1000)):
        with left.measured(kind):
            clock.secs += secs
    for step in range(resumed_at + 1, config.total_steps + 1):
        assert left.secs(step, steps_per_sec=1) == simulated_secs(config, step, 10, 1000), step


def test_a_clock_that_is_set_back_takes_nothing_away():
    stall = input_stall.InputStall()
    for secs in (2.0, -3600.0, 1.0):
        stall.add(secs)
    assert stall.take() == 3.0


def test_saves_by_the_clock_are_counted(clock):
    config = make_config(mode='train', train_steps=100, save_checkpoints_secs=30)
    left = TimeLeft(config)
    with left.measured(left.SAVE):
        clock.secs += 5
    assert left.secs(1, steps_per_sec=1) == 99 + 4 * 5
