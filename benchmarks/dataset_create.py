"""Compares the cost of making TFRecords with copying files: `python -m benchmarks.dataset_create`.

Makes synthetic JPEGs of ImageNet's usual size in class folders. Then these take turns: `cp -r` of
the folder; a copy with as many processes as dataset.create uses; and dataset.create without and
with --max_short_side, including its start-up. Prints images per second, the ratio to `cp -r` of the
same round, the size of the shards, and the memory of the largest process, also for a tenth of the
images.
"""
import concurrent.futures
import functools
import io
import os
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

from absl import flags
import numpy as np
from PIL import Image

from benchmarks import outputs
from common import app
from common.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NUM_CLASSES = 20
NUM_PICTURES = 40         # different pictures; a JPEG comment makes each file unique
PICTURE_SIZE = (500, 375)
JPEG_QUALITY = 90
SHORT_SIDE = 288


def define_flags():
    flags.DEFINE_integer('num_images', 20000, 'Number of images.', lower_bound=1000)
    flags.DEFINE_integer('rounds', 3, 'Number of turns of each command.', lower_bound=1)
    flags.DEFINE_string('work_dir', None, 'Directory for the files, 10 GB; default: a temporary '
                        'directory.')
    flags.DEFINE_string('json', None, 'File to write the figures to.')


def pictures():
    """Returns JPEG files of about 110 kB, a list of bytes: a sum of noise at several scales."""
    random = np.random.RandomState(0)
    files = []
    for _ in range(NUM_PICTURES):
        layers = [np.asarray(Image.fromarray(random.randint(0, 256, [side, side, 3]).astype(
            np.uint8)).resize(PICTURE_SIZE, Image.BICUBIC), np.float32) for side in (4, 32, 200)]
        pixels = np.clip(sum(layers) / 3, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'JPEG', quality=JPEG_QUALITY)
        files.append(file.getvalue())
    return files


def make_tree(folder, num_images):
    """Writes class folders of JPEGs; returns their total size in bytes."""
    files, total = pictures(), 0
    for index in range(num_images):
        class_dir = os.path.join(folder, f'class_{index % NUM_CLASSES:02d}')
        if index < NUM_CLASSES:
            os.makedirs(class_dir)
        picture, comment = files[index % NUM_PICTURES], f'{index:08d}'.encode()
        segment = b'\xff\xfe' + struct.pack('>H', 2 + len(comment)) + comment
        with open(os.path.join(class_dir, f'{index:08d}.jpg'), 'wb') as file:
            total += file.write(picture[:2] + segment + picture[2:])
    return total


def copy_with_cp(source, target):
    with tempfile.TemporaryFile('w+') as log:
        completed = subprocess.run(['cp', '-r', source, target], stderr=log)
        outputs.check_ended_well('cp', completed.returncode, log)


def copy_in_parallel(source, target):
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        try:
            list(executor.map(shutil.copytree, *zip(*[
                (os.path.join(source, name), os.path.join(target, name))
                for name in os.listdir(source)])))
        except shutil.Error as error:
            raise UserError(f'copying failed: {error.args[0][-1][-1]}') from error


def create(source, target, max_short_side=None):
    """Runs dataset.create; returns the memory of its largest process in MB."""
    command = [sys.executable, '-m', 'dataset.create', '--source=folder', f'--raw_dir={source}',
               f'--output_dir={target}']
    if max_short_side:
        command.append(f'--max_short_side={max_short_side}')
    with tempfile.TemporaryFile('w+') as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=log,
                                   start_new_session=True)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # Its processes would go on writing into a folder that is about to be removed.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
        outputs.check_ended_well('dataset.create', process.returncode, log)
    return usage.ru_maxrss / 1024


def timed(function, source, target):
    """Runs function(source, target) and removes `target`.

    Returns:
      (seconds, value that the function returned, size of the files in `target` in MB).
    """
    os.sync()
    start = time.monotonic()
    returned = function(source, target)
    secs = time.monotonic() - start
    num_bytes = sum(os.path.getsize(os.path.join(folder, name))
                    for folder, _, names in os.walk(target) for name in names)
    shutil.rmtree(target)
    return secs, returned, num_bytes / 1e6


def measure(work_dir, num_images, rounds):
    """Returns the figures, a dict."""
    source, target = os.path.join(work_dir, 'photos'), os.path.join(work_dir, 'made')
    total_bytes = make_tree(source, num_images)
    small = f'create_{SHORT_SIDE}'
    ways = {'cp': copy_with_cp, 'parallel_copy': copy_in_parallel, 'create': create,
            small: functools.partial(create, max_short_side=SHORT_SIDE)}
    rates, memory, sizes = {name: [] for name in ways}, {name: [] for name in ways}, {}
    for _ in range(rounds):
        for name, function in ways.items():
            secs, megabytes, sizes[name] = timed(function, source, target)
            rates[name].append(num_images / secs)
            memory[name].append(megabytes)
    few = os.path.join(work_dir, 'few')
    make_tree(few, num_images // 10)
    _, memory_of_few, _ = timed(create, few, target)

    def ratio(name, other):
        return round(statistics.median(
            own / others for own, others in zip(rates[name], rates[other])), 2)

    return dict(
        num_images=num_images, bytes_per_image=round(total_bytes / num_images),
        num_cores=len(os.sched_getaffinity(0)),
        **{f'{name}_images_per_sec': round(statistics.median(values))
           for name, values in rates.items()},
        create_to_cp=ratio('create', 'cp'),
        create_to_parallel_copy=ratio('create', 'parallel_copy'),
        **{f'{small}_to_create': ratio(small, 'create')},
        **{f'{name}_shards_megabytes': round(sizes[name]) for name in ('create', small)},
        peak_megabytes=round(max(memory['create'])),
        peak_megabytes_of_a_tenth=round(memory_of_few),
        **{f'{small}_peak_megabytes': round(max(memory[small]))})


def main(_):
    options = flags.FLAGS
    outputs.check_json(options.json)
    with outputs.work_folder(options.work_dir) as work_dir:
        figures = measure(work_dir, options.num_images, options.rounds)
    for name, value in figures.items():
        print(f'{name:30} {value}')
    outputs.write_json(options.json, figures)


if __name__ == '__main__':
    define_flags()
    app.run(main)
