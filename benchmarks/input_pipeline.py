"""Measures input throughput: `python -m benchmarks.input_pipeline --json=FILE`.

Rows are pipelines: training without augmentation, with AutoAugment and with RandAugment(2, 10);
evaluation; training from the smaller images of `dataset.create --max_short_side=288`; and with
--pytorch_python the usual loader of PyTorch. Each pipeline of this program has a ceiling, which
only reads and parses the same records and decodes the same crops. All pipelines and ceilings run in
processes that take turns; the result is the ratio of their speeds.

The images are those of `benchmarks.input_data`.
"""
import os
import statistics
import sys
import tempfile

from absl import flags

from benchmarks import contenders
from benchmarks import input_data
from benchmarks import outputs
from common import app

# Row -> (directory of its data, flags of benchmarks.input_worker).
PIPELINES = {
    'train_none': (input_data.FULL, ['--is_training']),
    'train_autoaugment': (input_data.FULL, ['--is_training', '--augment=autoaugment']),
    'train_randaugment': (input_data.FULL, ['--is_training', '--augment=randaugment']),
    'eval': (input_data.FULL, []),
    'train_none_288': (input_data.SMALL, ['--is_training']),
    'train_autoaugment_288': (input_data.SMALL, ['--is_training', '--augment=autoaugment']),
}
# Row -> (packages of its interpreter, statement that checks them, flags of benchmarks.pil_worker).
PIL_LOADERS = {
    'pil_loader': ('torch, numpy and Pillow', 'import numpy, PIL, torch', []),
    'pil_loader_autoaugment': ('torch, timm, numpy and Pillow', 'import numpy, PIL, timm, torch',
                               ['--augment=autoaugment']),
}
# Figure -> row -> row for comparison.
RATIOS = {
    'ratio_to_full_size': {'train_none_288': 'train_none',
                           'train_autoaugment_288': 'train_autoaugment'},
    'ratio_to_pil_loader': {'train_none': 'pil_loader', 'train_none_288': 'pil_loader',
                            'train_autoaugment': 'pil_loader_autoaugment',
                            'train_autoaugment_288': 'pil_loader_autoaugment'},
}


def define_flags():
    flags.DEFINE_string('json', None, 'File to write the figures to.')
    flags.DEFINE_multi_enum('row', list(PIPELINES), list(PIPELINES), 'Pipeline to measure; repeat '
                            'the flag for several.')
    flags.DEFINE_integer('rounds', 15, 'Number of turns of each pipeline and ceiling.',
                         lower_bound=1)
    flags.DEFINE_integer('batches_per_round', 16, 'Batches of a turn.', lower_bound=1)
    flags.DEFINE_string('pytorch_python', None, 'Interpreter that has torch, for the rows '
                        'pil_loader and, if it has timm, pil_loader_autoaugment.')


def ceiling_of(row):
    return f'{row} ceiling'


def make_commands(work_dir, options):
    """Returns the processes: name -> (command line, additional environment variables)."""
    sizes = [f'--image_size={input_data.IMAGE_SIZE}', f'--batch_size={input_data.BATCH_SIZE}']
    commands = {}
    for row in options.row:
        data, more_flags = PIPELINES[row]
        command = [sys.executable, '-m', 'benchmarks.input_worker', *sizes,
                   f'--data_dir={os.path.join(work_dir, data)}', *more_flags]
        commands[row] = command, {}
        commands[ceiling_of(row)] = [*command, '--is_ceiling'], {}
    for row, (packages, statement, more_flags) in PIL_LOADERS.items():
        interpreter = options.pytorch_python and contenders.find_interpreter(
            row, 'pytorch_python', packages, statement, options)
        if interpreter:
            images_dir = os.path.join(work_dir, input_data.FILES)
            commands[row] = [interpreter, '-m', 'benchmarks.pil_worker', *sizes,
                             f'--images_dir={images_dir}', *more_flags], {}
    return commands


def summarize(row, facts, turns, peak_rss_mb):
    """Returns the figures of a row as written to the JSON file.

    Args:
        row: str.
        facts: dict, what the row's process reports at its start.
        turns: dict, name -> list of turns, one a round, for all processes.
        peak_rss_mb: float, peak memory of the row's process in 10^6 bytes.
    """
    def median(name, value):
        return statistics.median(map(value, turns[name]))

    def images_per_sec(turn):
        return input_data.BATCH_SIZE * len(turn['results']) / turn['secs']

    def core_ms(turn):
        return turn['core_secs'] * 1000 / input_data.BATCH_SIZE / len(turn['results'])

    def ratio(other):
        return round(statistics.median(
            images_per_sec(own) / images_per_sec(theirs)
            for own, theirs in zip(turns[row], turns[other])), 3)

    figures = {'images_per_sec': round(median(row, images_per_sec), 1)}
    if row in PIPELINES:
        ceiling = ceiling_of(row)
        figures.update(
            ceiling_images_per_sec=round(median(ceiling, images_per_sec), 1),
            ratio_to_ceiling=ratio(ceiling),
            core_ms_per_image=round(median(row, core_ms), 3),
            ceiling_core_ms_per_image=round(median(ceiling, core_ms), 3),
            peak_rss_mb=round(peak_rss_mb, 1),
            graph_nodes=facts['graph_nodes'])
    figures['first_batch_secs'] = round(facts['first_batch_secs'], 2)
    for name, others in RATIOS.items():
        if others.get(row) in turns:
            figures[name] = ratio(others[row])
    return figures


def ratios_line(measured):
    """Returns one line with the ratios between rows."""
    parts = {'ratio_to_full_size': 'smaller shards / full size',
             'ratio_to_pil_loader': 'ours / PIL loader'}
    return '; '.join(f'{label}: ' + ', '.join(
        f'{row} {figures[name]:.2f}' for row, figures in measured.items() if name in figures)
        for name, label in parts.items() if any(name in figures for figures in measured.values()))


def main(argv):
    """Prints one line for each row, then the ratios."""
    del argv
    options = flags.FLAGS
    outputs.check_json(options.json)
    with tempfile.TemporaryDirectory(prefix='input-pipeline-') as work_dir:
        commands = make_commands(work_dir, options)
        input_data.write_data(work_dir)
        with contenders.started(commands) as started:
            turns = contenders.take_turns(started, options.rounds, options.batches_per_round)
            peaks = {name: contender.finish()['peak_rss_mb']
                     for name, contender in started.items()}
            measured = {row: summarize(row, started[row].facts, turns, peaks[row])
                        for row in (*PIPELINES, *PIL_LOADERS) if row in started}
    for row, figures in measured.items():
        print(f'{row:22}', '  '.join(f'{name} {value}' for name, value in figures.items()))
    ratios = ratios_line(measured)
    if ratios:
        print(ratios)
    outputs.write_json(options.json, measured)


if __name__ == '__main__':
    define_flags()
    app.run(main)
