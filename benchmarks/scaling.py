"""Measures the speed-up of a second process: `python -m benchmarks.scaling --json=FILE`.

Training with one process and with two processes, which exchange gradients over loopback, takes
turns. Each process has its own core, so the second one does not slow down the first. The additional
time of a step with two processes is the exchange and the wait for the slower process.
"""
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile

from absl import flags
from absl import logging

from benchmarks import outputs
from common import app
from common.errors import UserError
from config import setting
from dataset import digits
import model_builder_factory
from run_log import event_log

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROUNDS = 3
LOGGED_STEPS = 5
NUM_STEPS = 30


def define_flags():
    flags.DEFINE_enum('model_name', 'efficientnet-condconv-b0-4e',
                      model_builder_factory.MODEL_NAMES, 'The network.')
    setting.define_image_size('image_size', 96, 'Side of the images in pixels, or HEIGHTxWIDTH.')
    flags.DEFINE_integer('batch_size', 16, 'Images per step and process.', lower_bound=1,
                         upper_bound=setting.LARGEST_BATCH_SIZE)
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def main(_):
    options = flags.FLAGS
    outputs.check_json(options.json)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise UserError('benchmarks.scaling: this process may use one core only; run it on a '
                        'machine with two cores.')
    rates = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        data_dir = os.path.join(folder, 'data')
        digits.make(data_dir)
        command = [f'--data_dir={data_dir}', f'--model_name={options.model_name}',
                   f'--input_image_size={options.image_size}', f'--batch_size={options.batch_size}',
                   f'--train_steps={NUM_STEPS}', f'--log_step_count_steps={LOGGED_STEPS}']
        for number in range(ROUNDS):
            for num_processes, measured in rates.items():
                model_dir = os.path.join(folder, f'{number}_{num_processes}')
                _train(num_processes, cores, [*command, f'--model_dir={model_dir}'])
                measured += [event['images_per_sec'] for event in event_log.read(model_dir)
                             if event['event'] == 'train' and event['step'] > LOGGED_STEPS]
    figures = summarize(rates, options.batch_size)
    figures.update(model_name=options.model_name, image_size=options.image_size,
                   batch_size=options.batch_size)
    print(table(figures))
    outputs.write_json(options.json, figures)


def _train(num_processes, cores, command):
    """Runs main.py in `num_processes` processes, each on its own core."""
    sockets = [socket.socket() for _ in range(num_processes)]
    for each in sockets:
        each.bind(('127.0.0.1', 0))
    workers = [f'127.0.0.1:{each.getsockname()[1]}' for each in sockets]
    for each in sockets:
        each.close()
    processes, logs = [], [tempfile.TemporaryFile('w+') for _ in range(num_processes)]
    for index in range(num_processes):
        environment = {name: value for name, value in os.environ.items() if name != 'TF_CONFIG'}
        if num_processes > 1:
            environment['TF_CONFIG'] = json.dumps({
                'cluster': {'worker': workers}, 'task': {'type': 'worker', 'index': index}})
        processes.append(subprocess.Popen(
            ['taskset', '--cpu-list', str(cores[index]), sys.executable, 'main.py', '--mode=train',
             '--accelerator=stock', *command],
            cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=logs[index]))
    exit_codes = [process.wait() for process in processes]
    for exit_code, log in zip(exit_codes, logs):
        outputs.check_ended_well('main.py', exit_code, log)
    logging.info('Measured %d process(es).', num_processes)


def summarize(rates, batch_size):
    """Returns the figures of the benchmark.

    Args:
      rates: dict, number of processes, 1 or 2 -> list of images per second of all processes.
      batch_size: int, images per step and process.

    Returns:
      dict: images_per_sec_1 and _2, medians; speedup, at most 2; step_ms_1 and _2; exchange_share,
      the share of a step with two processes by which it is longer than a step with one.
    """
    one, two = (statistics.median(rates[count]) for count in (1, 2))
    step_ms_1, step_ms_2 = 1000 * batch_size / one, 1000 * 2 * batch_size / two
    return {'images_per_sec_1': round(one, 1), 'images_per_sec_2': round(two, 1),
            'speedup': round(two / one, 2), 'step_ms_1': round(step_ms_1, 1),
            'step_ms_2': round(step_ms_2, 1),
            'exchange_share': round(max(0.0, 1 - step_ms_1 / step_ms_2), 3)}


def table(figures):
    """Returns the figures as a Markdown table, as in docs/several_devices.md."""
    head = (f"{figures['model_name']} at {figures['image_size']} px, {figures['batch_size']} "
            'images a process')
    rows = [
        f'| {head} | 1 process | 2 processes |', '|---|--:|--:|',
        f"| images/s | {figures['images_per_sec_1']} | {figures['images_per_sec_2']} |",
        f"| a step, ms | {figures['step_ms_1']} | {figures['step_ms_2']} |",
        f"| speed-up | 1 | {figures['speedup']} |",
        f"| share of exchange and waiting | | {figures['exchange_share']:.0%} |"]
    return '\n'.join(rows)


if __name__ == '__main__':
    define_flags()
    app.run(main)
