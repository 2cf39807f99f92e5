"""Measures the cost of summaries: `python -m benchmarks.summary_overhead`.

Training steps with and without summaries (--skip_host_call) take turns in one process, on one batch
of random images. Writing the summaries is timed separately and weighted by the default intervals.
"""
import argparse
import dataclasses
import statistics
import tempfile
import time

from absl import flags
import tensorflow.compat.v1 as tf

from benchmarks import network_flags
from benchmarks import outputs
from benchmarks import protocol
from benchmarks import tensorflow_step
from common import app
from config import setting
from config import settings
from runtime import stock
from training import summaries
from training import tensor_names

WRITES = 20


def define_flags():
    network_flags.define(flags, batch_size=8)
    setting.define_image_size('image_size', 224, 'Side of the images, or HEIGHTxWIDTH.')
    flags.DEFINE_integer('rounds', 15, 'Number of turns of each kind of step.', lower_bound=2)
    flags.DEFINE_integer('steps_per_round', 4, 'Steps of a turn.', lower_bound=1)
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    """Measures, prints a table and writes --json."""
    options = flags.FLAGS
    outputs.check_json(options.json)
    contenders = [_Session(options, is_seen) for is_seen in (False, True)]
    step_secs = [[], []]
    for number in range(options.rounds):
        # The order alternates, because the second step of a round may profit from warm caches.
        for index in (0, 1) if number % 2 else (1, 0):
            step_secs[index].append(contenders[index].step_secs(options.steps_per_round))
    scalars_secs, everything_secs = contenders[True].write_secs()
    figures = summarize(step_secs, scalars_secs, everything_secs)
    figures = dict(model_name=options.model_name, batch_size=options.batch_size,
                   image_size=options.image_size, **figures)
    print(table(figures))
    outputs.write_json(options.json, figures)


def summarize(step_secs, scalars_secs, everything_secs):
    """Returns the figures of the benchmark.

    Args:
      step_secs: two lists with the seconds of a step in each turn, without and with summaries.
      scalars_secs: float, seconds to write the scalars.
      everything_secs: float, seconds to write all summaries.

    Returns:
      dict: unseen_step_ms and seen_step_ms, median steps without and with summaries;
      watching_share, the additional share of a step, a median over the pairs of turns; scalars_ms
      and everything_ms, the times of one write; cost_share, the total share that summaries add to a
      step at the default intervals.
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
    """Returns the figures as a Markdown table, as in docs/monitoring.md."""
    return '\n'.join([
        '| {model_name} at {image_size} px, batch {batch_size} | |'.format(**figures), '|---|--:|',
        '| step with `--skip_host_call`, ms | {unseen_step_ms:.1f} |'.format(**figures),
        '| step with summaries | {watching_share:+.2%} |'.format(**figures),
        '| write the scalars, ms | {scalars_ms:.1f} |'.format(**figures),
        '| write all summaries, ms | {everything_ms:.1f} |'.format(**figures),
        '| total cost at the default intervals | {cost_share:+.2%} |'.format(**figures)])


class _Session:
    """A training session that fetches what a progress hook does, with or without summaries."""

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
            self._session = tf.Session(config=runtime.training_session_config)
            self._session.run(tf.global_variables_initializer())
            self._session.run(tf.local_variables_initializer())
        if is_seen != bool(self._fetches['board']):
            raise RuntimeError('--skip_host_call: does not remove the summaries from the graph.')
        self._values = self._session.run(self._fetches)

    def step_secs(self, count):
        start = time.perf_counter()
        for _ in range(count):
            self._values = self._session.run(self._fetches)
        return (time.perf_counter() - start) / count

    def write_secs(self):
        """Returns the median seconds to write [scalars only, all summaries]."""
        with tempfile.TemporaryDirectory() as folder:
            measured = []
            for every_steps in (WRITES * 10, 1):
                secs = []
                for step in range(WRITES):
                    board = summaries.SummaryWriter(folder, every_steps)
                    if every_steps > 1:
                        board.write(0, {}, {})    # the first write is due for all summaries
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
