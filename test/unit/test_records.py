"""Reading TFRecord files record by record, the corrupt ones included."""
import struct

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from export import images as export_images
from tfrecords import reader
from tfrecords import record_format
from tfrecords import schema
from tfrecords import validation

HEADER_BYTES = 12
FRAME_BYTES = 16


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def read(path):
    return list(reader.iterate_records(str(path)))


def huge_frame(path):
    """The start of a record of 2^40 bytes, with the right checksum, as a writer would put it."""
    length = struct.pack('<Q', 1 << 40)
    write(path, [length])
    checksum = reader._checksum(length)
    # TensorFlow's own writer agrees about the checksum of these bytes.
    assert path.read_bytes()[-4:] == checksum
    return length + checksum + b'x' * 100


@pytest.fixture
def examples():
    return [schema.serialize_example(
        encoded=b'\xff\xd8\xff%d' % index, image_format='JPEG', height=1, width=1, channels=1,
        filename='x.jpg', label=index + 1, text='') for index in range(3)]


def test_records_are_those_of_tensorflow(tmp_path, digits_dir):
    random = np.random.RandomState(0)
    sizes = [0, 1, 2, 3, 4, 7, 8, 4095, 4096, 1 << 20]
    path = write(tmp_path / 'x', [random.bytes(size) for size in sizes])
    for shard in [path, schema.find_shards(digits_dir, schema.VALIDATION)[0]]:
        assert read(shard) == [(record, None) for record in tf.io.tf_record_iterator(shard)]


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / 'x').write_bytes(b'')
    assert read(tmp_path / 'x') == []


def test_a_file_that_cannot_be_opened_is_no_corrupt_record(tmp_path):
    with pytest.raises(UserError, match='nowhere: cannot be read .No such file or directory.;'):
        read(tmp_path / 'nowhere')


def test_every_flipped_bit_is_found(tmp_path, examples):
    path = tmp_path / 'x'
    content = open(write(path, examples), 'rb').read()
    second = FRAME_BYTES + len(examples[0])
    for position in range(second, second + FRAME_BYTES + len(examples[1])):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        found = read(path)
        assert found[0] == (examples[0], None) and found[1][0] is None
        if position < second + HEADER_BYTES:
            assert [reason for _, reason in found[1:]] == [
                'its header is corrupt or truncated, so the rest of the shard is unreadable']
        else:
            assert found[1:] == [(None, 'its checksum is wrong'), (examples[2], None)]


def test_every_cut_end_is_found(tmp_path, examples):
    path = tmp_path / 'x'
    content = open(write(path, examples), 'rb').read()
    start = len(content) - FRAME_BYTES - len(examples[2])
    for end in range(start + 1, len(content)):
        path.write_bytes(content[:end])
        *whole, (record, reason) = read(path)
        assert whole == [(example, None) for example in examples[:2]] and record is None
        assert reason == (
            'the shard is truncated within this record' if end >= start + HEADER_BYTES else
            'its header is corrupt or truncated, so the rest of the shard is unreadable')


def test_a_length_beyond_the_file_does_not_end_the_process(tmp_path, examples):
    frame = huge_frame(tmp_path / 'y')
    path = write(tmp_path / schema.shard_name(schema.TRAIN, 0, 1), examples)
    with open(path, 'ab') as file:
        file.write(frame)
    assert read(path)[3:] == [(None, 'the shard is truncated within this record')]
    bad = list(validation.find_bad_records([path], lambda record: [], lambda record: None, 1))
    assert bad == [validation.unreadable(path, 3)]


def test_predictions_go_on_after_a_corrupt_record(tmp_path, examples):
    path = tmp_path / 'x.tfrecord'
    content = bytearray(open(write(path, examples), 'rb').read())
    content[FRAME_BYTES + len(examples[0]) + HEADER_BYTES] ^= 1
    path.write_bytes(bytes(content))
    first, second, third = export_images.find([str(path)], [])
    assert (first.read(), third.read()) == (b'\xff\xd8\xff0', b'\xff\xd8\xff2')
    assert (first.label, third.label) == (1, 3)
    with pytest.raises(export_images.UnreadableError, match='x.tfrecord:1: cannot be read .its'):
        second.read()


@pytest.mark.parametrize('record, words', [
    (b'\xff\xff\xff', 'is not a tf.train.Example'),
    (b'', 'has 0 values of "image/encoded" instead of one'),
    (tf.train.Example(features=tf.train.Features(feature={schema.IMAGE_ENCODED: tf.train.Feature(
        bytes_list=tf.train.BytesList(value=[b'x']))})).SerializeToString(),
     'has 0 values of "image/class/label" instead of one')])
def test_an_example_without_an_image_or_a_label_has_a_reason(record, words):
    with pytest.raises(ValueError, match=words):
        record_format.RecordFormat().parse(record)


def test_a_label_may_be_missing_where_none_is_needed(examples):
    example = tf.train.Example.FromString(examples[0])
    assert record_format.RecordFormat().parse(examples[0]) == (b'\xff\xd8\xff0', 1, '')
    del example.features.feature[schema.CLASS_LABEL]
    record = example.SerializeToString()
    assert record_format.RecordFormat().parse(record, needs_label=False) == (
        b'\xff\xd8\xff0', None, '')
