import dataclasses
import json
import os

import pytest
import tensorflow.compat.v1 as tf

from common.errors import UserError
from tfrecords import schema


def touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b'x')
    return str(folder)


def test_shards_are_found_in_order_and_by_split(tmp_path):
    data_dir = touch(tmp_path, 'train-00001-of-00002', 'validation-00000-of-00001',
                     'train-00000-of-00002', 'dataset_info.json', 'train-00000-of-00002.partial')
    assert schema.find_shards(data_dir, 'train') == [
        os.path.join(data_dir, 'train-00000-of-00002'),
        os.path.join(data_dir, 'train-00001-of-00002')]
    assert schema.find_shards(data_dir, 'validation') == [
        os.path.join(data_dir, 'validation-00000-of-00001')]


def test_1024_shards_are_found(tmp_path):
    names = [schema.shard_name('train', index, 1024) for index in range(1024)]
    data_dir = touch(tmp_path, *names)
    assert [os.path.basename(path) for path in schema.find_shards(data_dir, 'train')] == names


@pytest.mark.parametrize('names, words', [
    ((), 'is empty'),
    (('validation-00000-of-00001', 'train.tfrecord'), 'no file matches train-?????-of-?????'),
    (('train-00000-of-00003', 'train-00002-of-00003'), 'train-00001-of-00003 is missing, 2 of 3'),
    (('train-00000-of-00001', 'train-00000-of-00002', 'train-00001-of-00002'), 'contains two sets'),
    (('train-00000-of-00002', 'train-00002-of-00002'), 'train-00001-of-00002 is missing'),
])
def test_a_wrong_folder_is_one_sentence_that_names_it(tmp_path, names, words):
    data_dir = touch(tmp_path, *names)
    with pytest.raises(UserError) as raised:
        schema.find_shards(data_dir, 'train')
    assert words in str(raised.value)
    assert data_dir in str(raised.value)
    assert '\n' not in str(raised.value)


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match='nowhere: does not exist'):
        schema.find_shards(str(tmp_path / 'nowhere'), 'train')
    touch(tmp_path, 'file')
    with pytest.raises(UserError, match='file: not a directory'):
        schema.find_shards(str(tmp_path / 'file'), 'train')
    with pytest.raises(UserError, match='--data_dir'):
        schema.find_shards('', 'train')


def test_an_url_without_a_file_system_is_refused():
    with pytest.raises(UserError, match='nosuch://bucket/data'):
        schema.find_shards('nosuch://bucket/data', 'train')


def test_a_shard_of_zero_bytes_is_named(tmp_path):
    data_dir = touch(tmp_path, 'train-00000-of-00002')
    (tmp_path / 'train-00001-of-00002').write_bytes(b'')
    with pytest.raises(UserError, match='train-00001-of-00002: has zero bytes'):
        schema.find_shards(data_dir, 'train')


INFO = schema.DatasetInfo(name='pets', num_classes=2, class_names=('cat', 'dög'), label_base=0,
                          num_images={'train': 12, 'validation': 3})


def test_info_comes_back_as_it_was_saved(tmp_path):
    assert schema.DatasetInfo.load(str(tmp_path)) is None
    INFO.save(str(tmp_path))
    assert schema.DatasetInfo.load(str(tmp_path)) == INFO
    replaced = dataclasses.replace(INFO, class_names=())
    replaced.save(str(tmp_path))
    assert schema.DatasetInfo.load(str(tmp_path)) == replaced
    assert os.listdir(str(tmp_path)) == ['dataset_info.json']


def test_checksums_are_kept_and_may_be_missing(tmp_path):
    INFO.save(str(tmp_path))
    assert 'sha256' not in json.loads((tmp_path / 'dataset_info.json').read_text(encoding='utf-8'))
    with_checksums = dataclasses.replace(INFO, sha256={'train-00000-of-00001': 'ab12'})
    with_checksums.save(str(tmp_path))
    assert schema.DatasetInfo.load(str(tmp_path)) == with_checksums


def test_an_unfinished_data_set_is_not_read(tmp_path):
    data_dir = touch(tmp_path, 'train-00000-of-00001')
    (tmp_path / '.create').mkdir()
    with pytest.raises(UserError, match='not finished; wait for dataset.create'):
        schema.find_shards(data_dir, 'train')


def test_info_allows_keys_that_it_does_not_know(tmp_path):
    fields = {**dataclasses.asdict(INFO), 'licence': 'CC0'}
    (tmp_path / 'dataset_info.json').write_text(json.dumps(fields), encoding='utf-8')
    assert schema.DatasetInfo.load(str(tmp_path)) == INFO


@pytest.mark.parametrize('change, words', [
    ({'name': 3}, '"name" must be a string'),
    ({'num_classes': 0}, '"num_classes" must be a positive integer'),
    ({'num_classes': True}, '"num_classes" must be a positive integer'),
    ({'num_classes': 3}, '"class_names" has 2 entries'),
    ({'class_names': 'cat'}, '"class_names" must be a list'),
    ({'class_names': [1, 2]}, '"class_names" must be a list of strings'),
    ({'class_names': ['a', 'b\nc']}, '"class_names" must be a list of strings without line breaks'),
    ({'label_base': 2}, '"label_base" must be 0 or 1'),
    ({'label_base': '1'}, '"label_base" must be 0 or 1'),
    ({'sha256': {'train-00000-of-00001': 3}}, '"sha256" must be an object of shard names'),
    ({'num_images': {'train': 12}}, '"num_images" must be'),
    ({'num_images': {'train': 12, 'validation': 'many'}}, '"num_images" must be'),
])
def test_a_wrong_value_in_info_is_named(tmp_path, change, words):
    fields = {**dataclasses.asdict(INFO), **change}
    (tmp_path / 'dataset_info.json').write_text(json.dumps(fields))
    with pytest.raises(UserError) as raised:
        schema.DatasetInfo.load(str(tmp_path))
    assert words in str(raised.value)
    assert 'dataset_info.json' in str(raised.value)


@pytest.mark.parametrize('key', ['name', 'num_classes', 'class_names', 'label_base', 'num_images'])
def test_a_missing_key_in_info_is_named(tmp_path, key):
    fields = dataclasses.asdict(INFO)
    del fields[key]
    (tmp_path / 'dataset_info.json').write_text(json.dumps(fields))
    with pytest.raises(UserError, match=f'lacks the key "{key}"'):
        schema.DatasetInfo.load(str(tmp_path))


@pytest.mark.parametrize('content', [b'{"name": ', b'', b'[]', b'3', b'\xff\xfe{}'])
def test_info_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / 'dataset_info.json').write_bytes(content)
    with pytest.raises(UserError, match='repair or delete it'):
        schema.DatasetInfo.load(str(tmp_path))


def test_info_is_not_saved_where_there_is_no_folder(tmp_path):
    with pytest.raises(UserError, match='cannot be written'):
        INFO.save(str(tmp_path / 'nowhere'))


def test_a_record_holds_what_imagenet_records_hold():
    arguments = dict(encoded=b'\xff\xd8\xff', image_format='JPEG', height=3, width=4, channels=1,
                     filename='a.jpg', label=7, text='dög')
    record = schema.serialize_example(**arguments)
    features = tf.train.Example.FromString(record).features.feature
    assert {name: tuple(feature.bytes_list.value or feature.int64_list.value)
            for name, feature in features.items()} == {
                'image/encoded': (b'\xff\xd8\xff',), 'image/format': (b'JPEG',),
                'image/height': (3,), 'image/width': (4,), 'image/colorspace': (b'Grayscale',),
                'image/channels': (1,), 'image/filename': (b'a.jpg',), 'image/class/label': (7,),
                'image/class/text': ('dög'.encode(),)}
    assert all(schema.serialize_example(**arguments) == record for _ in range(10))
