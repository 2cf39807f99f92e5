"""Shards of other names, keys and kinds of label, and compressed ones, as people have them."""
import dataclasses
import gzip
import io
import json
import math
import os
import struct
import zlib

import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from config import run_config
from dataset import shard_findings
from export import images as export_images
from imagenet_input import ImageNetInput
from report import classified_images
from tfrecords import layout
from tfrecords import reader
from tfrecords import record_format
from tfrecords import schema
from tfrecords import validation
from training import inputs

SIZE = 8
NAMES = ('cat', 'dög', 'wren')
LABELS = (2, 0, 1, 1)
TFDS = layout.Layout(train_pattern='pets-train.tfrecord-*', eval_pattern='pets-test.tfrecord-*')
COMPRESS = {reader.NONE: bytes, reader.GZIP: gzip.compress, reader.ZLIB: zlib.compress}


def feature(value):
    """A feature of bytes, float or int values, by the first of the list."""
    values = value if isinstance(value, list) else [value]
    for kind, name, message in ((bytes, 'bytes_list', tf.train.BytesList),
                                (float, 'float_list', tf.train.FloatList),
                                (int, 'int64_list', tf.train.Int64List)):
        if isinstance(values[0], kind):
            return tf.train.Feature(**{name: message(value=values)})
    raise TypeError(value)


def record(label, number=0, image_key='image', label_key='label'):
    """A record as TFDS writes it; its image is uniform in `number`."""
    file = io.BytesIO()
    Image.fromarray(np.full([SIZE, SIZE, 3], number, np.uint8)).save(file, 'PNG')
    features = {image_key: feature(file.getvalue()), 'file_name': feature(b'a.png')}
    if label is not None:
        features[label_key] = feature(label)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def frame(content):
    length = struct.pack('<Q', len(content))
    return length + reader._checksum(length) + content + reader._checksum(content)


def huge_frame():
    """The start of a record that claims to be 2^40 bytes long, with the right checksum."""
    length = struct.pack('<Q', 1 << 40)
    return length + reader._checksum(length) + b'x' * 100


def write(path, records, compression=reader.NONE, end=b''):
    content = b''.join(map(frame, records)) + end
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESS[compression](content))
    return str(path)


def write_split(folder, records, compression=reader.NONE, split='test', end=b''):
    """Two shards, the second one with a half of the records, as TFDS names them."""
    half = len(records) // 2
    return [write(folder / f'pets-{split}.tfrecord-{index:05d}-of-00002', part, compression,
                  end if index else b'')
            for index, part in enumerate((records[half:], records[:half]))]


def make_input(data_dir, **fields):
    return ImageNetInput(**{
        'data_dir': str(data_dir), 'is_training': False, 'image_size': SIZE, 'batch_size': 2,
        'num_classes': 3, 'label_base': 0, 'shards': TFDS, **fields})


def pairs(images_input):
    """(pixel, class) of each image of an evaluation, or of 20 batches of training, sorted."""
    found = []
    with tf.Graph().as_default(), tf.Session() as session:
        iterator = tf.data.make_initializable_iterator(images_input.dataset())
        element = iterator.get_next()
        session.run(iterator.initializer)
        for _ in range(20):
            try:
                images, labels = session.run(element)
            except tf.errors.OutOfRangeError:
                break
            is_real = labels.get('weight', np.ones(len(images))) == 1
            found += zip(images[is_real, 0, 0, 0].astype(int), labels['label'][is_real])
    return sorted(set(found) if images_input.is_training else found)


@pytest.mark.parametrize('pattern, found', [
    ('pets-train.tfrecord-*', ['pets-train.tfrecord-00000-of-00002',
                               'pets-train.tfrecord-00001-of-00002']),
    # A part of a set that is meant.
    ('pets-train.tfrecord-00001-of-?????', ['pets-train.tfrecord-00001-of-00002']),
    ('*.tfrecord', ['a.tfrecord', 'b.tfrecord']), ('[ab].tfrec*', ['a.tfrecord', 'b.tfrecord']),
    ('1.0/*/x*', ['1.0/deep/x-00000-of-00001']), ('.b*', ['.b.tfrecord'])])
def test_patterns_find_shards_below_a_folder_that_is_none(tmp_path, pattern, found):
    folder = tmp_path / 'a[b]*?'
    for name in ('pets-train.tfrecord-00000-of-00002', 'pets-train.tfrecord-00001-of-00002',
                 'pets-test.tfrecord-00000-of-00001', 'b.tfrecord', 'a.tfrecord', '.b.tfrecord',
                 'dataset_info.json', '1.0/deep/x-00000-of-00001', '1.0/file'):
        write(folder / name, [b'x'])
    write(tmp_path / 'ab' / 'c.tfrecord', [b'x'])
    for split, shards in ((schema.TRAIN, layout.Layout(train_pattern=pattern)),
                          (schema.VALIDATION, layout.Layout(eval_pattern=pattern))):
        assert shards.find_shards(str(folder), split) == [
            os.path.join(str(folder), name) for name in found]


@pytest.mark.parametrize('pattern, words', [
    (None, 'no file matches train-?????-of-????? (found: a-train.tfrecord-00000-of-00003, '
           'a-train.tfrecord-00002-of-00003, b.tfrecord and 5 more); set --data_dir to the '
           'directory of the TFRecord shards, or name them with --train_pattern'),
    ('c*', 'no file matches c* (found: a-train.tfrecord-00000-of-00003, '),
    ('a-*', 'a-train.tfrecord-00001-of-00003 is missing, 2 of 3 train shards are present'),
    ('n-*.gz', 'n-00000-of-00002.tfrecord.gz is missing, 1 of 2 train shards are present'),
    ('m*', 'contains two sets of shards, m-?????-of-00001 and m-?????-of-00002'),
    ('d*', 'd: is a directory'), ('e*', 'has zero bytes'),
    ('/x/*', '--train_pattern=/x/*: must name files below --data_dir'),
    ('../*', '--train_pattern=../*'), ('x//y', '--train_pattern=x//y')])
def test_a_pattern_that_finds_no_whole_set_is_refused(tmp_path, pattern, words):
    for name in ('a-train.tfrecord-00000-of-00003', 'a-train.tfrecord-00002-of-00003',
                 'b.tfrecord', 'm-00000-of-00001', 'm-00000-of-00002', 'd/x',
                 'n-00001-of-00002.tfrecord.gz'):
        write(tmp_path / name, [b'x'])
    (tmp_path / 'e').write_bytes(b'')
    with pytest.raises(UserError) as raised:
        layout.Layout(train_pattern=pattern).find_shards(str(tmp_path), schema.TRAIN)
    assert words in str(raised.value) and str(raised.value).endswith('.')


@pytest.mark.parametrize('kind, compression', [
    (int, reader.NONE), (float, reader.GZIP), (lambda label: NAMES[label].encode(), reader.ZLIB)])
def test_every_program_reads_what_tfds_writes(tmp_path, kind, compression):
    records = [record(kind(label), 10 * label) for label in LABELS]
    paths = write_split(tmp_path, records, compression)
    write_split(tmp_path, records, compression, split='train')
    expected = sorted((10 * label, label) for label in LABELS)
    for is_training in (True, False):
        images = make_input(tmp_path, is_training=is_training, class_names=NAMES)
        images.check_first_records()
        assert not list(images.find_bad_records())
        assert pairs(images) == sorted(set(expected) if is_training else expected)
    assert TFDS.label_base(str(tmp_path)) == 0
    predicted = list(export_images.of_split(str(tmp_path), schema.VALIDATION, TFDS))
    classes = {**export_images.classes_of_labels(
        str(tmp_path), 3, usual_base=predicted[0].label_base),
        **export_images.classes_of_names(str(tmp_path), 3, NAMES, None)}
    alone = list(export_images.find(paths, []))
    assert [classes[image.label] for image in predicted] == [1, 1, 2, 0]
    assert [(image.label, image.read()) for image in alone] == [
        (image.label, image.read()) for image in predicted]
    found = [shard_findings.look_at_shard(path, TFDS.record_format(paths), None, 1000)
             for path in paths]
    assert not found[0].corrupt + found[1].corrupt
    labels = found[0].labels + found[1].labels
    assert {classes[label]: count for label, count in labels.items()} == {0: 1, 1: 2, 2: 1}


@pytest.mark.parametrize('label, others, words', [
    (1.5, 1.0, 'has label 1.5, which is not an integer'), (math.nan, 1.0, 'has label nan, which'),
    (3.0, 1.0, 'has label 3, outside 0..2'),
    (b'wolf', b'wren', "has label 'wolf', which is not one of the 3 class names"),
    (b'\xff', b'wren', r"has label '\\xff'"), ([1, 1], 1, 'has 2 values of "label"'),
    (None, 1, 'has 0 values of "label" instead of one (features: '),
    (1.0, 1, 'has a label of type float_list, but the others have int64_list')])
def test_other_labels_are_bad_records(tmp_path, label, others, words):
    paths = write_split(tmp_path, [record(others)] * 9 + [record(label)])
    images = make_input(tmp_path, class_names=NAMES)
    with pytest.raises(UserError) as raised:
        images.check_first_records()
    found, = images.find_bad_records()
    assert words in found.reason and str(raised.value) == str(found)
    assert (found.path, found.index) == (paths[0], 4)
    with pytest.raises(tf.errors.InvalidArgumentError):
        pairs(images)


def test_names_of_classes_are_those_of_the_data_then_those_of_the_model(tmp_path):
    write_split(tmp_path, [record(name.encode(), index) for index, name in enumerate(NAMES)])
    info = schema.DatasetInfo('pets', 3, NAMES, 1, {split: 3 for split in schema.SPLITS})
    info.save(str(tmp_path))
    expected = [(0, 0), (1, 1), (2, 2)]
    assert pairs(make_input(tmp_path, label_base=1)) == expected
    assert pairs(make_input(tmp_path, label_base=1, num_classes=4)) == [
        (pixel, label + 1) for pixel, label in expected]
    mapped = make_input(tmp_path, label_base=1, num_classes=9, class_map=(8, 3, 5))
    assert pairs(mapped) == [(0, 8), (1, 3), (2, 5)]
    assert export_images.classes_of_names(
        str(tmp_path), 5, ('wren', 'x', 'cat', 'y', 'dög'), 'model') == {
            'cat': 2, 'dög': 4, 'wren': 0}
    assert export_images.classes_of_names(str(tmp_path), 4, (), None)['cat'] == 1


def test_keys_of_any_name_can_be_given(tmp_path):
    keys = {'image_key': 'jpg', 'label_key': 'cls'}
    write_split(tmp_path, [record(label, 10 * label, **keys) for label in LABELS])
    with pytest.raises(UserError, match='0 values of "image/encoded" .*.features: \'cls\', '
                       "'file_name', 'jpg'.; .*--image_key"):
        make_input(tmp_path).check_first_records()
    images = make_input(tmp_path, shards=dataclasses.replace(TFDS, **keys))
    images.check_first_records()
    assert len(pairs(images)) == len(LABELS)


def test_shards_of_another_compression_are_bad(tmp_path):
    write_split(tmp_path, [record(1)] * 4, reader.GZIP)
    for wrong in ('none', 'zlib'):
        images = make_input(tmp_path, shards=dataclasses.replace(TFDS, compression=wrong))
        with pytest.raises(UserError, match='record 0 cannot be read.*--compression'):
            images.check_first_records()
        assert [bad.index for bad in images.find_bad_records()] == [0, 0]


def test_the_first_records_may_be_bad(tmp_path):
    first = [b'no example', record(None), record(2.0)]
    write_split(tmp_path, [record(1)] * 4 + first + [record(1)], reader.ZLIB)
    assert TFDS.record_format(TFDS.find_shards(str(tmp_path), schema.VALIDATION)) == (
        record_format.RecordFormat('image', 'label', record_format.NUMBER, reader.ZLIB))


@pytest.mark.parametrize('compression', COMPRESS)
def test_a_length_that_lies_is_one_bad_record_wherever_it_is_looked_for(tmp_path, compression):
    records = [record(label, 10 * label) for label in LABELS]
    for split in ('train', 'test'):
        paths = write_split(tmp_path, records, compression, split, end=huge_frame())
    for is_training in (True, False):
        images = make_input(tmp_path, is_training=is_training)
        bad, = images.find_bad_records()
        assert (bad.index, bad.ends_shard) == (2, True)
        # All others are used; TensorFlow's reader would end this process at that one.
        skipping = dataclasses.replace(images, skipped=validation.by_shard([bad]))
        assert {label for _, label in pairs(skipping)} == set(LABELS)
    for found in (export_images.find(paths, []),
                  export_images.of_split(str(tmp_path), schema.VALIDATION, TFDS)):
        *good, last = found
        assert [image.label for image in good] == [1, 1, 2, 0]
        with pytest.raises(export_images.UnreadableError, match=f'{paths[1]}:2: cannot be read'):
            last.read()
    found = shard_findings.look_at_shard(paths[1], TFDS.record_format(paths), None, 1000)
    assert [index for index, _ in found.corrupt] == [2]


def test_a_length_within_a_file_of_many_holes_is_too_long(tmp_path):
    length = struct.pack('<Q', 1 << 32)
    path = write(tmp_path / 'x', [b'a'], end=length + reader._checksum(length))
    os.truncate(path, 1 << 33)
    assert list(reader.iterate_records(path))[1:] == [
        (None, f'its length of {1 << 32} bytes is above the limit of '
               f'{reader.LARGEST_RECORD_BYTES}')]


@pytest.mark.parametrize('compression', [reader.GZIP, reader.ZLIB])
def test_every_cut_end_of_a_compressed_shard_is_found(tmp_path, compression):
    path = tmp_path / 'x'
    random = np.random.RandomState(0)
    records = [random.bytes(size) for size in (40, 0, 30)]
    content = open(write(path, records, compression), 'rb').read()
    assert list(reader.iterate_records(str(path))) == [(each, None) for each in records]
    for end in range(12, len(content)):
        path.write_bytes(content[:end])
        *whole, (last, reason) = reader.iterate_records(str(path))
        assert last is None and reason
        assert [each for each, _ in whole] == records[:len(whole)]
    # What TensorFlow would leave out without a word.
    path.write_bytes(content + COMPRESS[compression](frame(b'x')))
    assert 'TensorFlow reads only the first' in list(reader.iterate_records(str(path)))[-1][1]


def test_compressed_records_are_those_of_tensorflow(tmp_path):
    random = np.random.RandomState(0)
    records = [random.bytes(size) for size in (0, 1, 5 << 20, 4096)] + [b'\0' * (3 << 20)]
    for compression in (reader.GZIP, reader.ZLIB):
        path = str(tmp_path / compression)
        with tf.io.TFRecordWriter(path, compression) as writer:
            for each in records:
                writer.write(each)
        assert reader.detect_compression(path) == compression
        assert list(reader.iterate_records(path)) == [(each, None) for each in records]


def test_the_dataset_info_of_tfds_is_no_reason_to_stop(tmp_path):
    (tmp_path / schema.DATASET_INFO_NAME).write_text(json.dumps({
        'name': 'pets', 'version': '1.0.0', 'fileFormat': 'tfrecord',
        'splits': [{'name': 'train', 'numBytes': '12', 'shardLengths': ['4', '4']}]}))
    assert schema.DatasetInfo.load(str(tmp_path)) is None


def test_names_to_show_decide_no_label(tmp_path):
    """They may be other names, or those of a file that was reordered."""
    config = run_config.from_values({'data_dir': 'synthetic', 'model_dir': str(tmp_path),
                                     'num_label_classes': 2})
    config = dataclasses.replace(config, class_names=('a', 'b'), names_to_show=('b', 'a'))
    assert inputs.make_input(config, is_training=False).class_names == ('a', 'b')


def test_a_length_that_lies_is_told_before_a_report_reads_it(tmp_path):
    records = [record(label, 10 * label) for label in LABELS]
    path = write_split(tmp_path, records, end=huge_frame())[1]
    for num_images in (None, 2):
        with pytest.raises(UserError, match=f'{path}: record 2 '):
            make_input(tmp_path, num_images=num_images).check_lengths()


def test_images_belong_to_the_data_set_not_to_the_folder_of_a_pattern(tmp_path):
    """Its dataset_info.json says what their labels are."""
    path = write(tmp_path / 'deep' / 'x.tfrecord', [record(1)])
    shards = layout.Layout(eval_pattern='deep/*')
    image, = export_images.of_split(str(tmp_path), schema.VALIDATION, shards)
    assert image.data_dir == str(tmp_path)
    image, = export_images.find([path], [])
    assert image.data_dir == str(tmp_path / 'deep')


def test_what_a_run_knows_of_its_data_holds_in_its_folder_only(tmp_path):
    given = layout.Layout(label_key='other')
    os.symlink(tmp_path, tmp_path / 'link')
    known = given.in_folder(str(tmp_path / 'link'), str(tmp_path), TFDS)
    assert known == dataclasses.replace(TFDS, label_key='other')
    assert given.in_folder(str(tmp_path / 'elsewhere'), str(tmp_path), TFDS) == given
    assert given.in_folder(str(tmp_path), '', TFDS) == given


def test_a_report_on_other_data_detects_how_they_are_written(tmp_path):
    schema.DatasetInfo(name='birds', num_classes=2, class_names=('a', 'b'), label_base=1,
                       num_images={'train': 2, 'validation': 2}).save(str(tmp_path))
    data = run_config.from_values({'data_dir': 'synthetic', 'model_dir': '/tmp/never_made'}).data
    data = dataclasses.replace(data, data_dir='/run', eval_pattern='x*', label_base=0)
    assert classified_images._of_other_data(data, '/run/') == {}
    assert classified_images._of_other_data(data, str(tmp_path)) == {
        'shards': layout.DETECTED, 'holdout_shards': None, 'label_base': 1}
