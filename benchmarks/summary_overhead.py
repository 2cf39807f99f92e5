"""What it costs to be seen: `python -m benchmarks.summary_overhead`.

A training step with all that TensorBoard is shown takes turns with one without it
(--skip_host_call), in one process, on one batch of random images. What is written now and then is
timed by itself, and its share is that of the default intervals.
"""
import argparse
import dataclasses
import statistics
import tempfile
import time

from absl import flags
import tensorflow.compat.v1 as tf

from benchmarks import outputs
from benchmarks import protocol
from benchmarks import tensorflow_step
from common import app
from config import setting
from config import settings
import model_builder_factory
from runtime import stock
from training import summaries
from training import tensor_names

WRITES = 20


def define_flags():
    flags.DEFINE_enum('model_name', 'efficientnet-condconv-b0-8e',
                      model_builder_factory.MODEL_NAMES, 'The network.')
    flags.DEFINE_integer('batch_size', 8, 'Images a step.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)
    setting.define_image_size('image_size', 224, 'Side of the images, or HEIGHTxWIDTH.')
    flags.DEFINE_integer('rounds', 15, 'Turns of each.', lower_bound=2)
    flags.DEFINE_integer('steps_per_round', 4, 'Steps of a turn.', lower_bound=1)
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    """Measures, prints a table and writes --json."""
    options = flags.FLAGS
    outputs.check_json(options.json)
    contenders = [_Session(options, is_seen) for is_seen in (False, True)]
    step_secs = [[], []]
    for number in range(options.rounds):
        # Who is first may find the caches of the other.
        for index in (0, 1) if number % 2 else (1, 0):
            step_secs[index].append(contenders[index].step_secs(options.steps_per_round))
    scalars_secs, everything_secs = contenders[True].write_secs()
    figures = summarize(step_secs, scalars_secs, everything_secs)
    figures = dict(model_name=options.model_name, batch_size=options.batch_size,
                   image_size=options.image_size, **figures)
    print(table(figures))
    outputs.write_json(options.json, figures)


def summarize(step_secs, scalars_secs, everything_secs):
    """The figures of turns, two lists of the seconds of a step: unseen and seen.

    Returns:
      dict: unseen_step_ms and seen_step_ms, medians; watching_share, the median over the pairs of
      turns; scalars_ms and everything_ms, what one writing takes; and cost_share, what all of it
      adds to a step at the default intervals.
    """
    unseen, seen = (statistics.median(secs) for secs in step_secs)
    share = statistics.median(more / less - 1 for less, more in zip(*step_secs))
    run = settings.RunConfig()
    written = scalars_secs / run.log_step_count_steps + (
        everything_secs - scalars_secs) / run.save_summary_steps
    return {'unseen_step_ms': round(1000 * unseen, 2), 'seen_step_ms': round(1000 * seen, 2),
            'watching_share': round(share, 5), 'scalars_ms': round(1000 * scalars_secs, 2),
            'everything_ms': round(1000 * everything_secs, 2),
            'cost_share': round(share + written / unseen, 5)}


def table(figures):
    """The figures as docs/monitoring.md has them."""
    return '\n'.join([
        '| {model_name} at {image_size} px, batch {batch_size} | |'.format(**figures), '|---|--:|',
        '| a step with `--skip_host_call`, ms | {unseen_step_ms:.1f} |'.format(**figures),
        '| a step that is watched | {watching_share:+.2%} |'.format(**figures),
        '| writing the scalars, ms | {scalars_ms:.1f} |'.format(**figures),
        '| writing everything, ms | {everything_ms:.1f} |'.format(**figures),
        '| in all, at the default intervals | {cost_share:+.2%} |'.format(**figures)])


class _Session:
    """A session that trains, with what a progress hook fetches, and a board or none."""

    def __init__(self, options, is_seen):
        worker_options = argparse.Namespace(
            contender=protocol.OURS, task=protocol.TRAIN, model_name=options.model_name,
            batch_size=options.batch_size, image_size=options.image_size)
        config = tensorflow_step.make_config(worker_options)
        config = dataclasses.replace(
            config, run=dataclasses.replace(config.run, skip_host_call=not is_seen))
        runtime = stock.StockRuntime(config)
        with tf.Graph().as_default() as graph:
            fetches = tensorflow_step.build(worker_options, config, runtime)
            self._fetches = {
                'step': fetches,
                'progress': {name: graph.get_tensor_by_name(f'{name}:0')
                             for name in tensor_names.PROGRESS},
                'board': summaries.marked_tensors(graph)}
            self._session = tf.Session(config=runtime.session_config)
            self._session.run(tf.global_variables_initializer())
            self._session.run(tf.local_variables_initializer())
        if is_seen != bool(self._fetches['board']):
            raise RuntimeError('--skip_host_call does not do what is measured here.')
        self._values = self._session.run(self._fetches)

    def step_secs(self, count):
        start = time.perf_counter()
        for _ in range(count):
            self._values = self._session.run(self._fetches)
        return (time.perf_counter() - start) / count

    def write_secs(self):
        """Seconds of writing scalars only, and everything; medians."""
        with tempfile.TemporaryDirectory() as folder:
            measured = []
            for every_steps in (WRITES * 10, 1):
                secs = []
                for step in range(WRITES):
                    board = summaries.SummaryWriter(folder, every_steps)
                    if every_steps > 1:
                        board.write(0, {}, {})    # the first time is when everything is due
                    start = time.perf_counter()
                    scalars = {**self._values['progress'],
                               **summaries.scalars_of(self._values['board'])}
                    board.write(step, scalars, self._values['board'])
                    secs.append(time.perf_counter() - start)
                measured.append(statistics.median(secs))
            return measured


if __name__ == '__main__':
    define_flags()
    app.run(main)
