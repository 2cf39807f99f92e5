"""A run logs the memory of its cache, and how to shorten the wait for input."""
import io
import os
import re
import shutil

from conftest import LITE
import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from common.quantities import bytes_text
from tfrecords import schema

HEIGHT, WIDTH = 1200, 1600
ADVICE = re.compile(r'The device waits for input (\d+) % of the time\. (.*)')


@pytest.fixture(scope='module')
def photo_dir(shared_dir):
    """Shards of photographs that take longer to decode than the network of 32 pixels takes."""
    folder = shared_dir / f'photos_{os.getpid()}'
    folder.mkdir()
    file = io.BytesIO()
    coarse = np.random.RandomState(0).randint(256, size=[HEIGHT // 8, WIDTH // 8, 3])
    Image.fromarray(coarse.astype(np.uint8)).resize([WIDTH, HEIGHT]).save(file, 'JPEG', quality=95)
    for split, num_shards in ((schema.TRAIN, 2), (schema.VALIDATION, 1)):
        for shard in range(num_shards):
            name = schema.shard_name(split, shard, num_shards)
            with tf.io.TFRecordWriter(str(folder / name)) as writer:
                for label in range(1, 9):
                    writer.write(schema.serialize_example(
                        encoded=file.getvalue(), image_format='JPEG', height=HEIGHT, width=WIDTH,
                        channels=3, filename='photo.jpg', label=label, text=''))
    return folder


@pytest.fixture(scope='module')
def train(run, photo_dir):
    def train_photos(model_dir, *flags):
        completed = run('main.py', '--mode=train', f'--data_dir={photo_dir}',
                        f'--model_dir={model_dir}', *LITE, '--batch_size=8',
                        '--num_label_classes=8', '--num_train_images=16', '--train_steps=6',
                        '--log_step_count_steps=2', *flags)
        assert completed.returncode == 0, completed.stderr
        return completed.stderr
    return train_photos


def test_a_long_wait_for_input_gets_one_line_of_advice(train, tmp_path):
    log = train(tmp_path / 'all', '--log_input_stall')
    (share, advice), = ADVICE.findall(log)
    assert int(share) > 10
    assert 'are busy decoding; dataset.create --max_short_side=41 makes' in advice
    num_cores = len(os.sched_getaffinity(0))
    if num_cores > 1:
        log = train(tmp_path / 'one', '--log_input_stall', '--num_parallel_calls=1')
        (_, advice), = ADVICE.findall(log)
        assert f'--num_parallel_calls=1 uses 1 of the {num_cores} cores' in advice


def test_a_cache_tells_its_memory_and_warns_if_there_is_too_little(run, digits_dir, tmp_path):
    data_dir = tmp_path / 'data'
    shutil.copytree(digits_dir, data_dir)
    shards = sorted(data_dir.glob('train-*'))

    def cache_lines():
        completed = run('main.py', '--mode=train', f'--data_dir={data_dir}',
                        f'--model_dir={tmp_path}/run', *LITE, '--train_steps=1', '--use_cache')
        assert completed.returncode == 0, completed.stderr
        return re.findall(r'.*--use_cache.*', completed.stderr)

    line, = cache_lines()
    total = sum(path.stat().st_size for path in shards)
    assert f'will take {bytes_text(total)} of the memory of this machine; ' in line
    assert line.endswith(' are free.')
    # A hole takes no room on disk. The run is over, so that nobody reads it.
    os.truncate(shards[0], 10 ** 13)
    line, = cache_lines()
    assert 'will take 10 TB of the memory' in line and 'The run will be killed' in line
    assert 'omit the flag, or store smaller images (dataset.create --max_short_side)' in line
