"""The line that shows how far training is, and what is derived for TensorBoard."""
import fcntl
import logging
import os
import pty
import re
import resource
import struct
import sys
import termios

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from analysis import experts
from common.errors import UserError
from config import run_config
from run_log import class_metrics
from run_log import evaluation_table
from runtime import stock
from training import model_fn as model_fns
from training import pictures
from training import progress
from training import summaries

LATE = progress.Progress(
    step=437000, total_steps=437500, epoch=349.6, total_epochs=350.0, loss=1.9877, top_1=0.78125,
    learning_rate=0.000123, smoothed_loss=2.01234, images_per_sec=812.34, input_stall=0.031,
    eta_secs=3725)


def test_a_line_for_a_log_says_everything():
    assert LATE.line == ('step 437000/437500  epoch 349.60  loss 1.9877 (smoothed 2.0123)  '
                         'top-1 0.781  lr 0.000123  812.3 images/s  ETA 1:02:05  input stall 3%')
    early = LATE._replace(smoothed_loss=None, images_per_sec=None, input_stall=None, eta_secs=None)
    assert early.line.endswith('loss 1.9877  top-1 0.781  lr 0.000123  - images/s  ETA -')


def test_a_line_for_a_terminal_fits():
    whole = ('epoch 349.60/350 step 437000/437500 loss 1.988 (smoothed 2.012) top-1 0.781 '
             'lr 0.00012 812 images/s input stall 3% ETA 1:02:05')
    assert LATE.fitted_line(200) == whole
    for columns in (len(whole) - 1, 90, 79):
        line = LATE.fitted_line(columns)
        assert len(line) <= columns
        for part in ('step 437000/437500', 'loss 1.988', 'top-1 0.781', '812 images/s',
                     'ETA 1:02:05'):
            assert part in line


def test_log_records_appear_above_the_live_line(monkeypatch):
    terminal, terminal_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))
    logger = tf.get_logger()
    with open(terminal_end, 'w') as stream:
        handlers = [logging.StreamHandler(stream), logging.NullHandler()]
        monkeypatch.setenv('TERM', 'xterm')
        monkeypatch.setattr(sys, 'stderr', stream)
        monkeypatch.setattr(logger, 'handlers', handlers)
        with progress.shown() as display:
            display.update(LATE)
            logger.error('a message')
        assert logger.handlers == handlers
        logger.error('another one')
    output = ''
    while 'another one\r\n' not in output:
        output += os.read(terminal, 65536).decode()
    os.close(terminal)
    # The live line is cleared, the message takes its place, and the live line follows.
    assert re.fullmatch(r'\r(epoch .* step 437000/437500 .*ETA 1:02:05) *\r +\ra message\r\n'
                        r'\r\1 *\r +\ranother one\r\n', output), repr(output)


def test_a_histogram_counts_every_value():
    values = np.array([0.0, 0.02, 0.5, 0.51, 1.0])
    histogram = summaries.histogram('tag', values).histo
    assert sum(histogram.bucket) == histogram.num == 5
    assert (histogram.min, histogram.max) == (0.0, 1.0)
    assert histogram.sum == pytest.approx(values.sum())
    assert histogram.sum_squares == pytest.approx((values ** 2).sum())
    assert len(histogram.bucket) == len(histogram.bucket_limit)


def test_statistics_of_experts():
    on, even, off = experts.describe('block_3', np.array([[1.0, 0.5, 0.001], [1.0, 0.5, 0.002]]))
    assert (on['mean'], on['entropy'], on['is_dead']) == (1.0, pytest.approx(0.0), False)
    assert (even['entropy'], even['std'], even['block'], even['expert']) == (1.0, 0.0, 'block_3', 1)
    assert off['is_dead'] and off['mean'] == pytest.approx(0.0015)


def test_pictures():
    images = np.zeros([5, 8, 6, 3], np.uint8)
    images[4] = 200
    grid = pictures.grid(images)
    assert grid.size == (3 * 6 + 2 * pictures.GAP, 2 * 8 + pictures.GAP)
    # The fifth is the second of the second row; the sixth place stays white.
    assert grid.getpixel((6 + pictures.GAP, 8 + pictures.GAP)) == (200, 200, 200)
    assert grid.getpixel((2 * (6 + pictures.GAP), 8 + pictures.GAP)) == (255, 255, 255)

    matrix = pictures.confusion(np.array([[9, 0], [5, 5]]), ['a cat', '\u4e2d\u6587' * 40])
    assert matrix.size[0] <= pictures.MAX_NAME_WIDTH + 2 * pictures.CELL + 10

    def cell(row, column):
        return matrix.getpixel(tuple(
            matrix.size[0] - (2 - index) * pictures.CELL for index in (column, row)))
    assert cell(0, 1) == (255, 255, 255)
    right, wrong = cell(0, 0), cell(1, 0)
    assert right[2] > right[0] and wrong[0] > wrong[2]


def test_what_is_watched_of_a_network(tmp_path):
    """Images as they were before they were normalised, and a name for each block."""
    mean, stddev = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    pixels = np.random.RandomState(0).randint(0, 256, [20, 4, 4, 3])
    with tf.Graph().as_default() as graph, tf.Session() as session:
        summaries.add_network(
            tf.constant((pixels - np.array(mean)) / stddev, tf.float32), mean, stddev,
            {'block_7/routing_weights': tf.fill([20, 2], 0.5), 'block_7': tf.zeros([1])})
        summaries.add_scalars({'loss_scale': tf.constant(8.0),
                               'gradient_norm': tf.constant(np.inf)})
        board = summaries.SummaryWriter(str(tmp_path), every_steps=10)
        values = session.run(summaries.marked_tensors(graph))
    np.testing.assert_array_equal(values['watched/images'], pixels[:summaries.NUM_IMAGES])
    assert summaries.scalars_of(values) == {'loss_scale': 8.0, 'gradient_norm': None}
    for step in (4, 8, 12):
        board.write(step, {'loss': 1.0, 'gradient_norm': None}, values)
    steps = {}
    for path in tmp_path.iterdir():
        for event in tf.train.summary_iterator(str(path)):
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    assert steps.pop('main/loss') == [4, 8, 12] and steps.pop('input_images') == [4]
    assert set(steps) == {f'routing_block_7/expert_{expert}/{name}' for expert in (0, 1)
                          for name in ('mean_weight', 'entropy', 'weights', 'entropies')}
    assert all(found == [4, 12] for found in steps.values())


def test_the_cross_entropy_that_is_compared_with_validation_is_not_smoothed(tmp_path):
    found = {}
    for label_smoothing in (0.0, 0.5):
        config = run_config.from_values(dict(
            data_dir='synthetic', model_dir=str(tmp_path), model_name='efficientnet-b0',
            width_coefficient=0.25, depth_coefficient=0.25, batch_size=4, num_label_classes=10,
            train_steps=1, survival_prob=1.0, dropout_rate=0.0, label_smoothing=label_smoothing))
        with tf.Graph().as_default(), tf.Session() as session:
            tf.set_random_seed(1)
            model_fns.model_fn(
                np.random.RandomState(0).randint(0, 256, [4, 32, 32, 3]).astype(np.float32),
                {'label': tf.constant([0, 3, 3, 9])}, tf.estimator.ModeKeys.TRAIN,
                model_fns.make_params(config, stock.StockRuntime(config)))
            session.run(tf.global_variables_initializer())
            found[label_smoothing] = session.run(
                ['cross_entropy:0', 'watched/scalars/unsmoothed_cross_entropy:0'])
    assert found[0.5][1] == pytest.approx(found[0.0][0], rel=1e-5)
    assert found[0.0][1] == pytest.approx(found[0.0][0], rel=1e-6)
    assert abs(found[0.5][0] / found[0.5][1] - 1) > 1e-3


def test_the_loss_scale_of_a_gpu_can_be_watched(tmp_path):
    runtime = stock.StockRuntime(run_config.from_values({
        'data_dir': str(tmp_path), 'model_dir': str(tmp_path), 'train_steps': 1}))
    _, loss_scale = runtime.wrap_optimizer(tf.train.GradientDescentOptimizer(1.0))
    assert loss_scale is None
    # As if there were a GPU and --precision_mode=allow_mix_precision.
    runtime._mixes = True
    with tf.Graph().as_default(), tf.Session() as session:
        try:
            _, loss_scale = runtime.wrap_optimizer(tf.train.GradientDescentOptimizer(1.0))
        finally:
            tf.train.experimental.disable_mixed_precision_graph_rewrite()
        session.run(tf.global_variables_initializer())
        assert session.run(loss_scale) == 2 ** 15


def evaluation(step, weights, top_1, **more):
    return {'event': 'eval', 'step': step, 'weights': weights, 'top_1': top_1, 'top_5': 0.9,
            'cross_entropy': 1.0, 'num_images': 10, **more}


def test_scores_of_classes_are_those_of_scikit_learn(tmp_path):
    """precision_recall_fscore_support(zero_division=0); the last two classes have no images."""
    matrix = [[3, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    matrix[1][2] = 4
    scores = class_metrics.scores(class_metrics.counts_of(matrix), ['a', 'b, c', 'd', 'e'])
    class_metrics.write_csv(str(tmp_path / 'x.csv'), scores)
    assert (tmp_path / 'x.csv').read_text().splitlines() == [
        'class,name,precision,recall,f1,support',
        '0,a,0.6,0.75,0.666667,4', '1,"b, c",0.666667,0.25,0.363636,8',
        '2,d,0.0,0.0,0.0,0', '3,e,0.0,0.0,0.0,0']
    assert class_metrics.scores(class_metrics.counts_of(matrix), ())[3].name == '3'


def test_the_best_evaluation_is_marked(tmp_path):
    events = [evaluation(step, weights, top_1) for step, weights, top_1 in (
        (1, 'raw', 0.9), (1, 'ema', 0.2), (2, 'raw', 0.3), (2, 'ema', 0.4), (2, 'ema', 0.5),
        (3, 'raw', 0.1), (3, 'ema', 0.5))]
    table = evaluation_table.table(events, str(tmp_path))
    line, = [line for line in table.splitlines() if '<- best' in line]
    assert line.split()[0] == '2' and '0.5000' in line and '0.4000' not in table
    assert 'Best: step 2, top-1 0.5000; not archived' in table
    assert evaluation_table.table([], str(tmp_path)) == ''


def test_a_quick_look_is_not_the_best_evaluation(tmp_path):
    events = [evaluation(1, 'raw', 0.4), evaluation(2, 'raw', 0.9, num_images=3),
              evaluation(3, 'raw', 0.9, name='other')]
    assert 'Best: step 1, top-1 0.4000' in evaluation_table.table(events, str(tmp_path))


def test_a_quick_look_does_not_stand_for_the_evaluation_of_its_step(tmp_path):
    events = [evaluation(1, 'raw', 0.4), evaluation(1, 'raw', 0.9, num_images=3)]
    row, = evaluation_table.rows(events, str(tmp_path))
    assert row.judged['top_1'] == 0.4
    unknown = evaluation(1, 'raw', 0.8, num_images=None)
    row, = evaluation_table.rows([unknown, *events, unknown], str(tmp_path))
    assert row.judged['top_1'] == 0.4
    row, = evaluation_table.rows(events + [evaluation(1, 'raw', 0.5)], str(tmp_path))
    assert row.judged['top_1'] == 0.5


def test_a_long_table_keeps_its_end_and_the_best(tmp_path):
    events = [evaluation(step, 'raw', 0.9 if step == 2 else 0.1, name='extra')
              for step in range(1, 61)]
    lines = evaluation_table.table(events, str(tmp_path)).splitlines()
    steps = [int(line.split()[0]) for line in lines[1:-2]]
    assert steps == [2, *range(21, 61)] and '<- best' in lines[1] and 'name' in lines[0]
    assert lines[-2].startswith('19 earlier evaluations')


def test_summaries_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    """TensorFlow writes on into a file that may not grow, or on a full disk, without a word."""
    monkeypatch.setitem(summaries.TRAINING_TAGS, 'loss', 'x' * 10000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, limits[1]))
    try:
        # The first write makes the file, which begins with the default graph: an empty one here,
        # whatever other tests have put into that of the process.
        with tf.Graph().as_default(), pytest.raises(
                UserError, match=f'{tmp_path}/events.*: cannot be written completely'):
            board = summaries.SummaryWriter(str(tmp_path), every_steps=1000)
            for step in range(2 ** 20 // 10000 + 2):
                board.write(step, {'loss': 1.0}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert step == 2 ** 20 // 10000
