"""Thousands of damaged records, shards and images: counted, never a crash or a hang."""
import json
import os
import re

from conftest import LITE
import mutations
import numpy as np
from PIL import Image
import pytest

from tfrecords import schema

NUM_RECORDS = 900
NUM_SHARDS = 240
NUM_IMAGES = 900
NUM_MUTATED = NUM_RECORDS + NUM_SHARDS + NUM_IMAGES
GOOD_RECORDS = 64


def write_good_shard(path):
    whole = mutations.whole_images(('JPEG', 'PNG'))
    with mutations.tf.io.TFRecordWriter(path) as writer:
        for index in range(GOOD_RECORDS):
            writer.write(mutations._record(whole[index % len(whole)][1], 1 + index % 10))


def assert_survived(ended, exit_codes=(0,)):
    assert ended.returncode in exit_codes, (ended.returncode, ended.stderr[-2000:])
    assert 'Traceback' not in ended.stderr and 'Fatal Python' not in ended.stderr


@pytest.mark.slow
def test_damaged_records_and_shards_are_counted(programs, tmp_path):
    """Through the search for bad records, and then as what it let pass, through training."""
    random = np.random.RandomState(1)
    data_dir = tmp_path / 'data'
    data_dir.mkdir()
    names = [str(data_dir / schema.shard_name('train', index, NUM_SHARDS + 2))
             for index in range(NUM_SHARDS + 2)]
    mutations.write_records(names[0], NUM_RECORDS, random)
    write_good_shard(names[1])
    for name in names[2:]:
        mutations.write_damaged_shard(name, 3, random)
    write_good_shard(str(data_dir / 'validation-00000-of-00001'))
    (data_dir / 'dataset_info.json').write_text(json.dumps(dict(
        name='damaged', num_classes=10, class_names=[], label_base=1,
        num_images=dict(train=NUM_RECORDS, validation=GOOD_RECORDS))))
    ended = programs.run(
        'main.py', '--mode=train', f'--data_dir={data_dir}', f'--model_dir={tmp_path}/run', *LITE,
        '--train_steps=40', '--max_bad_records=100000', '--skip_host_call', timeout_secs=300)
    assert_survived(ended)
    named = re.findall(r'Bad record in (\S+): record (\d+) ', ended.stderr)
    assert len(named) == len(set(named)) > NUM_SHARDS / 2 + NUM_RECORDS / 4
    assert f'{len(named)} bad records were skipped.' in ended.stderr
    assert names[1] not in dict(named)


@pytest.mark.slow
def test_damaged_images_are_left_out(programs, trained_dir, tmp_path):
    """By dataset.create, whose shards hold nothing that is bad, and by predict.py."""
    random = np.random.RandomState(2)
    for class_name in ('a', 'b'):
        mutations.write_images(str(tmp_path / 'raw' / class_name), NUM_IMAGES // 2, random)
        for index in range(40):
            Image.new('RGB', (9, 9), (index, 9, 9)).save(
                str(tmp_path / 'raw' / class_name / f'good_{index}.png'))
    ended = programs.run('dataset.create', '--source=folder', f'--raw_dir={tmp_path}/raw',
                         f'--output_dir={tmp_path}/data', '--verify=decode', timeout_secs=300)
    assert_survived(ended)
    converted, left_out = map(int, re.search(
        r'(\d+) images converted, (\d+) skipped', ended.stdout).groups())
    assert left_out > NUM_IMAGES / 4 and converted > 80
    ended = programs.run('dataset.inspect', f'--data_dir={tmp_path}/data', '--json',
                         '--contact_sheet=', timeout_secs=300)
    assert_survived(ended)
    assert json.loads(ended.stdout)['corrupt'] == []

    images = mutations.write_images(str(tmp_path / 'images'), NUM_IMAGES, random,
                                    formats=('JPEG', 'PNG'))
    ended = programs.run('predict.py', f'--checkpoint={trained_dir}', '--batch_size=64',
                         str(tmp_path / 'images'), timeout_secs=300)
    assert_survived(ended, exit_codes=(1,))
    predicted = {line.split('  ')[0] for line in ended.stdout.splitlines()}
    refused = {path for path in images if re.search(
        rf'error: {re.escape(path)}\b', ended.stderr)}
    assert not predicted & refused and predicted | refused == set(images)
    assert len(refused) > NUM_IMAGES / 4
    assert os.path.isdir(str(tmp_path / 'images'))
