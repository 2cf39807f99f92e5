"""Checks a long run for leaks: `python -m benchmarks.soak --minutes=30 --json=FILE`.

Trains the network of the quick start on its sample data, with a checkpoint every few seconds and an
evaluation every few hundred steps, and samples the memory and open files of the process. The run
must stop by itself when its time is over, and its last checkpoint must be intact.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags
from absl import logging
import tensorflow.compat.v1 as tf

from benchmarks import outputs
from benchmarks import protocol
from checkpoints import store
from common import app
from common.errors import UserError
from dataset import digits
from run_log import event_log

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SAMPLE_SECS = 2
CHECKPOINT_SECS = 3
STEPS_PER_EVAL = 300
NUM_PARTS = 6


def define_flags():
    flags.DEFINE_float('minutes', 30, 'Minutes to train.', lower_bound=0.5,
                       upper_bound=100000)
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    options = flags.FLAGS
    outputs.check_json(options.json)
    with tempfile.TemporaryDirectory() as folder:
        data_dir, model_dir = os.path.join(folder, 'data'), os.path.join(folder, 'run')
        digits.make(data_dir)
        samples = _train(data_dir, model_dir, options.minutes)
        events = event_log.read(model_dir)
        if events[-1]['event'] != 'run_stop' or events[-1]['status'] != 'out_of_time':
            raise UserError(f'main.py: the run ended with {events[-1]}, not with the status '
                            'out_of_time.')
        store.verify(store.latest(model_dir))
    figures = summarize(samples, options.minutes, events)
    print(table(figures))
    outputs.write_json(options.json, figures)


def _train(data_dir, model_dir, minutes):
    """Trains for `minutes`.

    Returns:
      list of samples: (seconds since the start, memory in MB, open files, latest checkpoint).
    """
    with open(os.path.join(ROOT, 'recipes', 'quickstart.flags')) as file:
        recipe = [line.strip() for line in file if line.startswith('--')]
    # A file, because nothing reads a pipe during the run and it would fill up.
    log = tempfile.TemporaryFile('w+')
    process = subprocess.Popen(
        [sys.executable, 'main.py', '--accelerator=stock',
         *[flag for flag in recipe if not flag.startswith('--save_checkpoints_steps')],
         f'--data_dir={data_dir}', f'--model_dir={model_dir}', '--train_epochs=1e6',
         f'--steps_per_eval={STEPS_PER_EVAL}', f'--save_checkpoints_secs={CHECKPOINT_SECS}',
         f'--max_hours={minutes / 60}'],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log)
    samples, start = [], time.monotonic()
    while process.poll() is None:
        try:
            samples.append((time.monotonic() - start, protocol.memory_mb('VmRSS', process.pid),
                            len(os.listdir(f'/proc/{process.pid}/fd')),
                            tf.train.latest_checkpoint(model_dir)))
        except (OSError, ValueError):
            # The process has ended.
            break
        time.sleep(SAMPLE_SECS)
    outputs.check_ended_well('main.py', process.wait(), log)
    logging.info('Sampled the process %d times.', len(samples))
    return samples


def summarize(samples, minutes, events):
    """Returns the figures of a run.

    Args:
      samples: list, see `_train`.
      minutes: float, length of the run.
      events: list of dicts, the events of the run.

    Returns:
      dict: minutes; steps; checkpoints, the number of those sampled, a lower bound; evaluations;
      parts, a list of dicts for equal parts of the time: memory_mb and open_files, medians, and
      peak_memory_mb and peak_open_files.
    """
    size = len(samples) / NUM_PARTS
    parts = []
    for index in range(NUM_PARTS):
        part = samples[round(index * size):round((index + 1) * size)]
        parts.append({
            'until_minute': round(part[-1][0] / 60, 1),
            'memory_mb': round(statistics.median(memory for _, memory, _, _ in part)),
            'peak_memory_mb': round(max(memory for _, memory, _, _ in part)),
            'open_files': round(statistics.median(files for _, _, files, _ in part)),
            'peak_open_files': max(files for _, _, files, _ in part)})
    return {'minutes': minutes, 'steps': events[-1]['step'],
            'checkpoints': len({checkpoint for *_, checkpoint in samples if checkpoint}),
            'evaluations': len([event for event in events if event['event'] == 'eval']),
            'parts': parts}


def table(figures):
    """Returns the figures as a Markdown table, as in docs/faults.md."""
    rows = [f"| {figures['minutes']:.0f} minutes, {figures['steps']:,} steps, at least "
            f"{figures['checkpoints']:,} checkpoints, {figures['evaluations']} evaluations "
            '| memory, MB: median | largest | open files: median | largest |',
            '|---|--:|--:|--:|--:|']
    rows += [f"| until minute {part['until_minute']:.0f} | {part['memory_mb']:,} "
             f"| {part['peak_memory_mb']:,} | {part['open_files']} | {part['peak_open_files']} |"
             for part in figures['parts']]
    return '\n'.join(rows)


if __name__ == '__main__':
    define_flags()
    app.run(main)
