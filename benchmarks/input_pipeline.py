"""Measures input throughput: `python -m benchmarks.input_pipeline --json=FILE`.

The rows are pipelines: training without augmentation, with AutoAugment and with RandAugment(2, 10);
evaluation; training from smaller shards, as `dataset.create --max_short_side=288` makes them; and
with --pytorch_python the loader that PyTorch users have. Each of ours has a ceiling, which only
reads and parses the same records and decodes the same crops. Pipelines and ceilings are processes
that all take turns, and the ratios of their speeds are the result.

The images are the photographs of `benchmarks.photos`, resized to 500 x 375 pixels and encoded with
quality 97: 103 kB each, close to ImageNet's 110 kB at 469 x 387 pixels.
"""
import io
import os
import statistics
import sys
import tempfile
import time

from absl import flags
from PIL import Image
import tensorflow.compat.v1 as tf

from benchmarks import contenders
from benchmarks import outputs
from benchmarks import photos
from common import app
from dataset import image_files
from tfrecords import schema

IMAGE_WIDTH, IMAGE_HEIGHT = 500, 375
JPEG_QUALITY = 97
SHORT_SIDE = 288
NUM_SHARDS = 16
RECORDS_PER_SHARD = 100
IMAGE_SIZE = 224
BATCH_SIZE = 32

FULL, SMALL, FILES = 'full', 'small', 'files'    # folders: shards, smaller shards, JPEG files
# Row -> its data, and flags of benchmarks.input_worker.
PIPELINES = {
    'train_none': (FULL, ['--is_training']),
    'train_autoaugment': (FULL, ['--is_training', '--augment=autoaugment']),
    'train_randaugment': (FULL, ['--is_training', '--augment=randaugment']),
    'eval': (FULL, []),
    'train_none_288': (SMALL, ['--is_training']),
    'train_autoaugment_288': (SMALL, ['--is_training', '--augment=autoaugment']),
}
# Row -> packages of benchmarks.pil_worker besides its own, and its flags.
PIL_LOADERS = {
    'pil_loader': ('torch, numpy and Pillow', 'import numpy, PIL, torch', []),
    'pil_loader_autoaugment': ('torch, timm, numpy and Pillow', 'import numpy, PIL, timm, torch',
                               ['--augment=autoaugment']),
}
# Figure -> row -> the row that it is compared with.
RATIOS = {
    'ratio_to_full_size': {'train_none_288': 'train_none',
                           'train_autoaugment_288': 'train_autoaugment'},
    'ratio_to_pil_loader': {'train_none': 'pil_loader', 'train_none_288': 'pil_loader',
                            'train_autoaugment': 'pil_loader_autoaugment',
                            'train_autoaugment_288': 'pil_loader_autoaugment'},
}


def define_flags():
    flags.DEFINE_string('json', None, 'File to write the figures to.')
    flags.DEFINE_integer('rounds', 15, 'Times that all pipelines and ceilings take turns.',
                         lower_bound=1)
    flags.DEFINE_integer('batches_per_round', 16, 'Batches of a turn.', lower_bound=1)
    flags.DEFINE_string('pytorch_python', None, 'Interpreter that has torch, for the rows '
                        'pil_loader and, if it has timm, pil_loader_autoaugment.')


def make_pictures():
    """Returns the photographs as JPEG files, a list of `image_files.Picture`."""
    pictures = []
    for photo in photos.load():
        side = (IMAGE_WIDTH - IMAGE_HEIGHT) // 2
        photo = photo.resize([IMAGE_WIDTH, IMAGE_WIDTH], Image.BICUBIC).crop(
            [0, side, IMAGE_WIDTH, side + IMAGE_HEIGHT])
        file = io.BytesIO()
        photo.save(file, 'JPEG', quality=JPEG_QUALITY)
        pictures.append(image_files.prepare(file.getvalue()))
    return pictures


def write_shards(data_dir, pictures):
    """Writes pictures as training shards and links the same files as validation shards."""
    os.mkdir(data_dir)
    for shard in range(NUM_SHARDS):
        name = os.path.join(data_dir, schema.shard_name(schema.TRAIN, shard, NUM_SHARDS))
        with tf.io.TFRecordWriter(name) as writer:
            for record in range(RECORDS_PER_SHARD):
                index = (shard + record) % len(pictures)
                picture = pictures[index]
                writer.write(schema.serialize_example(
                    encoded=picture.encoded, image_format=picture.image_format,
                    height=picture.height, width=picture.width, channels=picture.channels,
                    filename=f'{index}.jpg', label=1 + index, text=''))
        os.link(name, os.path.join(
            data_dir, schema.shard_name(schema.VALIDATION, shard, NUM_SHARDS)))


def write_data(work_dir):
    """Writes the same pictures as shards, as smaller shards and as files."""
    pictures = make_pictures()
    write_shards(os.path.join(work_dir, FULL), pictures)
    limit = image_files.Limit(SHORT_SIDE)
    write_shards(os.path.join(work_dir, SMALL), [
        image_files.prepare(picture.encoded, limit=limit) for picture in pictures])
    os.mkdir(os.path.join(work_dir, FILES))
    for index in range(NUM_SHARDS * RECORDS_PER_SHARD):
        with open(os.path.join(work_dir, FILES, f'{index}.jpg'), 'wb') as file:
            file.write(pictures[index % len(pictures)].encoded)


def ceiling_of(row):
    return f'{row} ceiling'


def make_commands(work_dir, options):
    """Returns name -> (command line, environment) of all that take turns."""
    sizes = [f'--image_size={IMAGE_SIZE}', f'--batch_size={BATCH_SIZE}']
    commands = {}
    for row, (data, more_flags) in PIPELINES.items():
        command = [sys.executable, '-m', 'benchmarks.input_worker', *sizes,
                   f'--data_dir={os.path.join(work_dir, data)}', *more_flags]
        commands[row] = command, {}
        commands[ceiling_of(row)] = [*command, '--is_ceiling'], {}
    for row, (packages, statement, more_flags) in PIL_LOADERS.items():
        interpreter = options.pytorch_python and contenders.find_interpreter(
            row, 'pytorch_python', packages, statement, options)
        if interpreter:
            commands[row] = [interpreter, '-m', 'benchmarks.pil_worker', *sizes,
                             f'--images_dir={os.path.join(work_dir, FILES)}', *more_flags], {}
    return commands


def take_turns(started, rounds, num_batches):
    """Returns name -> list of what `protocol.serve` says of each of its turns."""
    turns = {name: [] for name in started}
    for _ in range(1 + rounds):
        for name, contender in started.items():
            # Batches that were prefetched during the others' turns do not count, and what it
            # prefetches after its own turn must not slow down the next one.
            buffered = contender.facts['buffered_batches']
            contender.run(buffered)
            turns[name].append(contender.run(num_batches))
            time.sleep(turns[name][-1]['secs'] / num_batches * buffered)
    # The first round is a warm-up.
    return {name: own[1:] for name, own in turns.items()}


def summarize(row, facts, turns, peak_rss_mb):
    """Returns the figures of a row, as they are in the JSON file.

    Args:
        row: str.
        facts: dict, what the row's process says at its start.
        turns: dict, name -> list of turns, one a round, of all that took turns.
        peak_rss_mb: float, memory of the row's process.
    """
    def median(name, value):
        return statistics.median(map(value, turns[name]))

    def images_per_sec(turn):
        return BATCH_SIZE * len(turn['results']) / turn['secs']

    def core_ms(turn):
        return turn['core_secs'] * 1000 / BATCH_SIZE / len(turn['results'])

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
    """Returns in one line how the rows compare with one another."""
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
        write_data(work_dir)
        with contenders.started(commands) as started:
            turns = take_turns(started, options.rounds, options.batches_per_round)
            peaks = {name: contender.finish()['peak_rss_mb']
                     for name, contender in started.items()}
            measured = {row: summarize(row, started[row].facts, turns, peaks[row])
                        for row in (*PIPELINES, *PIL_LOADERS) if row in started}
    for row, figures in measured.items():
        print(f'{row:22}', '  '.join(f'{name} {value}' for name, value in figures.items()))
    print(ratios_line(measured))
    outputs.write_json(options.json, measured)


if __name__ == '__main__':
    define_flags()
    app.run(main)
