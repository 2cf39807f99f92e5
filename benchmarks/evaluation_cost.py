"""Measures the cost of an evaluation within a run: `python -m benchmarks.evaluation_cost`.

Repeatedly evaluates a checkpoint on generated images on the CPU, as a run does between two steps.
Evaluations of two sizes take turns. The line through their median times separates the fixed cost of
an evaluation from the cost of its images. Saving a checkpoint, reading it back, and fetching all
variables are timed as well.
"""
import os
import statistics
import time

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf

from benchmarks import outputs
from checkpoints import restore
from checkpoints import store
from common import app
from config import run_config
from runtime import stock
from training import evaluation_session
from training import inputs
from training import model_fn as model_fns
from training import nan_guard
from training import saving

# Label -> settings of the network, image size among them.
NETWORKS = {
    "the quick start's network at 48 px": dict(
        model_name='efficientnet-condconv-b0-4e', width_coefficient=0.5, depth_coefficient=0.25,
        input_image_size=48, num_label_classes=10, eval_batch_size=100),
    'condconv-b0-8e at 224 px': dict(
        model_name='efficientnet-condconv-b0-8e', eval_batch_size=32)}
BATCHES = (2, 8)


def define_flags():
    flags.DEFINE_integer('rounds', 7, 'Number of turns of each number of images.', lower_bound=2)
    flags.DEFINE_string('work_dir', None, 'Directory for the checkpoints; default: a temporary '
                        'directory.')
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    """Measures, prints a table and writes --json."""
    options = flags.FLAGS
    outputs.check_json(options.json)
    figures = {}
    with outputs.work_folder(options.work_dir) as folder:
        for number, (label, settings) in enumerate(NETWORKS.items()):
            figures[label] = measure(settings, os.path.join(folder, str(number)), options.rounds)
    print(table(figures))
    outputs.write_json(options.json, figures)


def measure(settings, model_dir, rounds):
    """Returns the figures of one network.

    Returns:
      dict: open_secs, to build the graph and session, once a run; evaluation_secs, fixed cost of
      evaluating one kind of weights; images_per_sec; save_secs, read_back_secs and fetch_secs of
      one checkpoint, medians; checkpoint_mb.
    """
    runtime = stock.StockRuntime(run_config.from_values({
        'data_dir': 'synthetic', 'model_dir': model_dir, 'batch_size': 2, 'train_steps': 1,
        'mode': 'train_and_eval', 'accelerator': 'stock', **settings}))
    checkpoint = _trained(runtime)
    start = time.perf_counter()
    estimator = runtime.build_estimator(
        model_fns.model_fn, model_fns.make_params(runtime.config, runtime))
    sizes = [count * settings['eval_batch_size'] for count in BATCHES]
    with _evaluating(runtime, estimator, sizes[0]) as few:
        open_secs = time.perf_counter() - start
        with _evaluating(runtime, estimator, sizes[1]) as many:
            evaluation_secs, images_per_sec = _line_through(
                checkpoint, (few, many), sizes, rounds)
    return {'open_secs': round(open_secs, 2), 'evaluation_secs': round(evaluation_secs, 2),
            'images_per_sec': round(images_per_sec, 1), **_cost_of_saving(checkpoint, rounds)}


def _trained(runtime):
    """Trains one step; returns the path of its checkpoint."""
    os.makedirs(runtime.config.run.model_dir)
    runtime.train(
        model_fns.model_fn, model_fns.make_params(runtime.config, runtime),
        inputs.make_input(runtime.config, is_training=True).dataset, 1,
        lambda steps_per_run: [saving.make_hook(runtime.config, runtime)])
    return store.latest(runtime.config.run.model_dir)


def _evaluating(runtime, estimator, num_images):
    images = inputs.make_input(runtime.config, is_training=False)
    batches = num_images // images.batch_size
    return evaluation_session.EvaluationSession(
        estimator, lambda: images.dataset().take(batches))


def _line_through(checkpoint, sessions, sizes, rounds):
    """Returns (fixed seconds of an evaluation, images per second); the two sessions take turns."""
    secs = [[], []]
    for number in range(rounds + 1):
        for index in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            sessions[index].evaluate(checkpoint, restore.EMA)
            if number:    # the first round is a warm-up: it optimizes the graph
                secs[index].append(time.perf_counter() - start)
    few, many = (statistics.median(each) for each in secs)
    secs_per_image = (many - few) / (sizes[1] - sizes[0])
    return max(0.0, few - sizes[0] * secs_per_image), 1 / secs_per_image


def _cost_of_saving(checkpoint, rounds):
    saver_secs, read_secs, fetch_secs = [], [], []
    with tf.Graph().as_default(), tf.Session() as session:
        saver = tf.train.import_meta_graph(f'{checkpoint}.meta', clear_devices=True)
        saver.restore(session, checkpoint)
        variables = [variable for variable in tf.global_variables()
                     if variable.dtype.base_dtype.is_floating]
        for _ in range(rounds):
            start = time.perf_counter()
            saver.save(session, checkpoint, write_state=False)
            saver_secs.append(time.perf_counter() - start)
            start = time.perf_counter()
            nan_guard.check_saved(checkpoint, os.path.dirname(checkpoint))
            read_secs.append(time.perf_counter() - start)
            start = time.perf_counter()
            for value in session.run(variables):
                np.isfinite(np.sum(value))
            fetch_secs.append(time.perf_counter() - start)
    megabytes = sum(os.path.getsize(path) for path in store.files_of(checkpoint)) / 1e6
    return {'save_secs': round(statistics.median(saver_secs), 3),
            'read_back_secs': round(statistics.median(read_secs), 3),
            'fetch_secs': round(statistics.median(fetch_secs[1:]), 3),
            'checkpoint_mb': round(megabytes)}


def table(figures):
    """Returns the figures as a Markdown table, as in docs/training.md."""
    rows = [('build graph and session, once a run, s', '{open_secs:.1f}'),
            ('fixed cost of an evaluation of raw or averaged weights, s', '{evaluation_secs:.1f}'),
            ('evaluation speed, images/s', '{images_per_sec:,.0f}'),
            ('size of a checkpoint, MB', '{checkpoint_mb}'),
            ('save a checkpoint, s', '{save_secs:.2f}'),
            ('read a checkpoint back, s', '{read_back_secs:.2f}')]
    return '\n'.join([
        f"| {' | '.join(['on 2 CPU cores', *figures])} |", '|---' + '|--:' * len(figures) + '|',
        *(f"| {label} | {' | '.join(form.format(**each) for each in figures.values())} |"
          for label, form in rows)])


if __name__ == '__main__':
    define_flags()
    app.run(main)
