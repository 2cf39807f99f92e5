"""dataset.create and dataset.inspect as a user runs them, up to a network trained on the result."""
import glob
import hashlib
import io
import json
import os
import pathlib
import shlex
import shutil
import signal
import struct
import tarfile
import time

from conftest import ROOT
from conftest import TINY
import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

from dataset import digits
from run_log import event_log
from tfrecords import schema

pytestmark = pytest.mark.slow

EVERYTHING = {schema.TRAIN: 400, schema.VALIDATION: 100}


@pytest.fixture(scope='module')
def digit_folders(tmp_path_factory, digits_dir):
    """The sample digits as class folders."""
    folder = str(tmp_path_factory.mktemp('folders') / 'digits')
    digits.make_folders(folder, EVERYTHING)
    return folder


def create(run, raw_dir, output_dir, *flags, source='folder'):
    return run('-m', 'dataset.create', f'--source={source}', f'--raw_dir={raw_dir}',
               f'--output_dir={output_dir}', *flags)


def features(data_dir, split):
    """Yields the features of every record of a split, a dict of lists."""
    for path in schema.find_shards(str(data_dir), split):
        for record in tf.io.tf_record_iterator(path):
            feature = tf.train.Example.FromString(record).features.feature
            yield {name: list(value.bytes_list.value or value.int64_list.value
                              or value.float_list.value) for name, value in feature.items()}


def read_report(data_dir):
    """(summary, list of entries) of create_report.jsonl."""
    with open(os.path.join(str(data_dir), 'create_report.jsonl')) as file:
        summary, *entries = map(json.loads, file)
    return summary, entries


def shards_of(folder):
    """Shard's name -> bytes."""
    return {name: open(os.path.join(str(folder), name), 'rb').read()
            for name in sorted(os.listdir(str(folder))) if schema.is_shard_name(name)}


def assert_one_sentence(completed, *texts):
    assert completed.returncode == 1, completed.stderr
    assert 'Traceback' not in completed.stderr
    last_line = completed.stderr.strip().splitlines()[-1]
    assert 'error:' in last_line
    for text in texts:
        assert text in last_line


def test_from_a_folder_of_images_to_top_1(run, digit_folders, digits_dir, tmp_path):
    """The digits, written out and back, teach what the sample's own records teach."""
    data_dir = str(tmp_path / 'data')
    completed = create(run, digit_folders, data_dir)
    assert completed.returncode == 0, completed.stderr
    assert '4000 training and 1000 validation images of 10 classes' in completed.stdout
    assert '5000/5000' in completed.stderr  # the progress bar
    info = schema.DatasetInfo.load(data_dir)
    assert info.num_images == {
        'train': 4000, 'validation': 1000}
    assert sorted(info.class_names) == sorted(digits.CLASS_NAMES)
    with open(os.path.join(data_dir, 'labels.txt')) as file:
        assert tuple(file.read().split()) == info.class_names
    for name, content in shards_of(data_dir).items():
        assert info.sha256[name] == hashlib.sha256(content).hexdigest()

    def files(folder, split):
        return sorted((feature[schema.CLASS_TEXT][0], feature[schema.IMAGE_FILENAME][0],
                       feature[schema.IMAGE_ENCODED][0]) for feature in features(folder, split))

    for split in schema.SPLITS:
        assert files(data_dir, split) == files(digits_dir, split)
    for feature in features(data_dir, 'validation'):
        label = feature[schema.CLASS_LABEL][0]
        assert info.class_names[label - 1].encode() == feature[schema.CLASS_TEXT][0]

    completed = run(
        'main.py', '--flagfile=recipes/quickstart.flags', f'--data_dir={data_dir}',
        f'--model_dir={tmp_path}/run', '--width_coefficient=0.25', '--train_epochs=5',
        '--input_image_size=32', '--model_name=efficientnet-lite0', '--steps_per_eval=1000')
    assert completed.returncode == 0, completed.stderr
    evaluations = [event for event in event_log.read(f'{tmp_path}/run') if event['event'] == 'eval']
    assert evaluations[-1]['num_images'] == 1000
    assert max(event['top_1'] for event in evaluations) > 0.6


def five_commands():
    """The commands of README's chapter, each a list of words without the interpreter."""
    with open(os.path.join(ROOT, 'README.md')) as file:
        block = file.read().split('<!-- five commands')[1].split('```bash\n')[1].split('```')[0]
    commands = [shlex.split(line) for line in block.replace('\\\n', ' ').splitlines()]
    assert all(words.pop(0) == '.venv/bin/python' for words in commands)
    return commands


def test_the_five_commands_of_the_readme(run, digit_folders, trained_dir, tmp_path):
    """As they stand there, but for the places and a network and a training of seconds."""
    places = {'/data/photos/wren/1.jpg': glob.glob(f'{digit_folders}/validation/seven/*')[0],
              '/data/photos': digit_folders, '/data/birds': f'{tmp_path}/data',
              '/runs/birds': f'{tmp_path}/run', '/exports/birds': f'{tmp_path}/export',
              '/downloads/tf_efficientnet_lite0.in1k.safetensors': trained_dir}
    commands = five_commands()
    assert len(commands) == 5
    for words in commands:
        for place, substitute in places.items():
            words = [word.replace(place, substitute) for word in words]
        if words[0] == 'main.py':
            words += [*TINY, '--train_epochs=0.02']
        completed = run(*words)
        assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith(places['/data/photos/wren/1.jpg'])
    assert set(completed.stdout.split()[1::2]) <= set(digits.CLASS_NAMES)


def test_the_same_command_again_finds_it_complete(run, digit_folders, tmp_path):
    flags = ('--label_base=0', '--num_train_shards=3', '--num_validation_shards=1')
    assert create(run, digit_folders, tmp_path / 'data', *flags).returncode == 0
    assert sorted(shards_of(tmp_path / 'data')) == [
        'train-00000-of-00003', 'train-00001-of-00003', 'train-00002-of-00003',
        'validation-00000-of-00001']
    assert schema.DatasetInfo.load(str(tmp_path / 'data')).label_base == 0
    assert {feature[schema.CLASS_LABEL][0]
            for feature in features(tmp_path / 'data', 'train')} == set(range(10))
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / 'data').iterdir()}
    again = create(run, digit_folders, tmp_path / 'data', *flags)
    assert again.returncode == 0 and 'already complete' in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'data').iterdir()} == written
    assert_one_sentence(create(run, digit_folders, tmp_path / 'data'), 'other images or flags')
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'data').iterdir()} == written


def test_kill_9_and_the_same_command_give_the_same_bytes(run, start, photos, tmp_path):
    """Killed with some shards done, and the next in the making."""
    photo = photos[0][1]
    for index in range(600):
        class_dir = tmp_path / 'raw' / f'class_{index % 3}'
        class_dir.mkdir(parents=True, exist_ok=True)
        (class_dir / f'{index}.jpg').write_bytes(photo + b'%d' % index)
    flags = ('--num_train_shards=60', '--num_validation_shards=6', '--max_short_side=240')
    command = ['-m', 'dataset.create', '--source=folder', f'--raw_dir={tmp_path}/raw', *flags]
    assert run(*command, f'--output_dir={tmp_path}/whole').returncode == 0

    process = start(*command, f'--output_dir={tmp_path}/killed')
    deadline = time.monotonic() + 100
    while len(shards_of(tmp_path / 'killed') if (tmp_path / 'killed').exists() else ()) < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = shards_of(tmp_path / 'killed')
    assert 5 <= len(done) < 66
    unfinished = run('main.py', f'--data_dir={tmp_path}/killed', f'--model_dir={tmp_path}/run',
                     *TINY, '--train_steps=1')
    assert_one_sentence(unfinished, 'not finished')
    for other in ('--seed=1', '--max_short_side=241', '--jpeg_quality=91',
                  '--max_image_pixels=64000'):
        assert_one_sentence(run(*command, other, f'--output_dir={tmp_path}/killed'),
                            'unfinished dataset of other images or flags')

    written = {name: os.stat(str(tmp_path / 'killed' / name)).st_mtime_ns for name in done}
    completed = run(*command, f'--output_dir={tmp_path}/killed')
    assert completed.returncode == 0, completed.stderr
    assert 'Resuming the unfinished dataset' in completed.stderr
    assert shards_of(tmp_path / 'killed') == shards_of(tmp_path / 'whole')
    for name in written:
        assert os.stat(str(tmp_path / 'killed' / name)).st_mtime_ns == written[name]
    for name in ('dataset_info.json', 'labels.txt', 'create_report.jsonl'):
        assert (tmp_path / 'killed' / name).read_bytes() == (
            tmp_path / 'whole' / name).read_bytes()
    assert not (tmp_path / 'killed' / '.create').exists()


def test_smaller_pictures_have_the_same_labels(run, photos, tmp_path):
    for index in range(24):
        class_dir = tmp_path / 'raw' / f'class_{index % 3}'
        class_dir.mkdir(parents=True, exist_ok=True)
        (class_dir / f'{index}.jpg').write_bytes(
            photo_file(photos, index % 4, 'JPEG') if index % 2 else photos[index % 4][1])
    stored = []
    for name, flags in (('full', ()), ('small', ('--max_short_side=48', '--jpeg_quality=70'))):
        completed = create(run, f'{tmp_path}/raw', tmp_path / name, *flags)
        assert completed.returncode == 0, completed.stderr
        stored.append([record for split in schema.SPLITS
                       for record in features(tmp_path / name, split)])
    assert 'short side at most 48 pixels' in completed.stdout
    full, small = stored
    same = [key for key in full[0] if key not in (
        'image/encoded', 'image/height', 'image/width')]
    assert [[record[key] for key in same] for record in full] == [
        [record[key] for key in same] for record in small]
    for before, after in zip(full, small):
        is_large = min(before['image/height'] + before['image/width']) > 48
        assert (before['image/encoded'] != after['image/encoded']) == is_large
        assert min(after['image/height'] + after['image/width']) <= 48
    info = json.loads((tmp_path / 'small' / 'dataset_info.json').read_text())
    assert (info['max_short_side'], info['jpeg_quality']) == (48, 70)
    for split in schema.SPLITS:
        labels = [record['image/class/label'][0] for record in features(tmp_path / 'small', split)]
        assert info['class_counts'][split] == [labels.count(label) for label in (1, 2, 3)]
    assert 'max_short_side' not in json.loads((tmp_path / 'full' / 'dataset_info.json').read_text())
    completed = run('main.py', f'--data_dir={tmp_path}/small', f'--model_dir={tmp_path}/run', *TINY,
                    '--train_steps=1')
    assert ('stored with a short side of at most 48 pixels and JPEG quality 70'
            in completed.stderr + completed.stdout)


def photo_file(photos, index, file_format, mode='RGB', **options):
    file = io.BytesIO()
    Image.open(io.BytesIO(photos[index][1])).resize((64, 48)).convert(mode).save(
        file, file_format, **options)
    return file.getvalue()


def test_odd_images_are_converted_or_listed(run, photos, tmp_path):
    red, blue = (Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue'))
    animation = io.BytesIO()
    red.save(animation, 'GIF', save_all=True, append_images=[blue])
    grey_16 = io.BytesIO()
    Image.fromarray(np.full([8, 8], 40000, np.uint16)).save(grey_16, 'PNG')
    odd = {'cmyk.jpg': photo_file(photos, 0, 'JPEG', 'CMYK'),
           'png.png': photo_file(photos, 1, 'PNG'),
           'misnamed.jpg': photo_file(photos, 2, 'PNG'),
           '16.png': grey_16.getvalue(), 'animated.gif': animation.getvalue()}
    bad = {'cut.jpg': photos[3][1][:9999], 'empty.jpg': b'', 'page.jpg': b'<html></html>'}
    for name, content in {**odd, **bad, 'notes.txt': b'x'}.items():
        (tmp_path / 'raw' / 'a').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'raw' / 'a' / name).write_bytes(content)
    for class_name in 'ab':
        for index in range(10):
            (tmp_path / 'raw' / class_name).mkdir(exist_ok=True)
            (tmp_path / 'raw' / class_name / f'{index}.jpg').write_bytes(
                photos[index][1] + class_name.encode())
    completed = create(run, tmp_path / 'raw', tmp_path / 'data')
    assert completed.returncode == 0, completed.stderr
    assert ('5 images converted, 3 skipped, 1 other files and directories ignored'
            in completed.stdout)
    summary, entries = read_report(tmp_path / 'data')
    assert summary['converted'] == 5 and summary['rejected'] == 3
    for action, names in (('converted', odd), ('rejected', bad), ('ignored', ['notes.txt'])):
        assert {entry['file'] for entry in entries if entry['action'] == action} == {
            f'a/{name}' for name in names}
        assert all(entry['detail'] for entry in entries)
    assert sum(schema.DatasetInfo.load(str(tmp_path / 'data')).num_images.values()) == 25

    inspected = run('-m', 'dataset.inspect', f'--data_dir={tmp_path}/data', '--json')
    assert inspected.returncode == 0, inspected.stderr
    findings = json.loads(inspected.stdout)
    assert not findings['corrupt'] and not findings['contradictions']
    assert set(findings['splits']['train']['formats']) == {'JPEG'}
    assert set(findings['splits']['train']['modes']) <= {'RGB', 'L'}


def test_a_tree_as_people_have_it(programs, tmp_path):
    """Splits in capitals, a third one, numbers for names, a photo on its side, a bomb."""
    def write(name, encoded=None, **options):
        path = tmp_path / 'raw' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 30)).save(str(path), **options)
        if encoded:
            path.write_bytes(encoded(path.read_bytes()))

    def bomb(encoded):
        size = encoded.index(b'\xff\xc0') + 5
        return encoded[:size] + struct.pack('>HH', 12000, 12000) + encoded[size + 4:]

    for index in range(12):
        write(f'Train/{index}/x.jpg')
    exif = Image.Exif()
    exif[0x112] = 6
    write('Train/10/phone.jpg', exif=exif)
    write('Val/3/x.jpg')
    write('Val/3/bomb.jpg', bomb)
    write('Test/3/x.jpg')
    command = ('dataset.create', '--source=folder', f'--raw_dir={tmp_path}/raw',
               f'--output_dir={tmp_path}/raw/data', '--class_order=number')
    ended = programs.run(*command)
    assert ended.returncode == 0, ended.stderr
    assert f'{tmp_path}/raw/Test is skipped: the splits are {tmp_path}/raw/Train' in ended.stderr
    assert 'classes by number: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11' in ended.stdout
    data_dir = tmp_path / 'raw' / 'data'
    assert (data_dir / 'labels.txt').read_text().split() == list(map(str, range(12)))
    _, entries = read_report(data_dir)
    assert [(entry['file'], entry['action']) for entry in entries] == [
        ('Test/', 'ignored'), ('Train/10/phone.jpg', 'converted'), ('Val/3/bomb.jpg', 'rejected')]
    assert entries[2]['detail'].startswith('it has 12000 x 12000 pixels, above the limit of 89478')
    (size,) = {(feature[schema.IMAGE_WIDTH][0], feature[schema.IMAGE_HEIGHT][0])
               for feature in features(data_dir, 'train')} - {(40, 30)}
    assert size == (30, 40)

    ended = programs.run('dataset.inspect', f'--data_dir={data_dir}', '--json', '--contact_sheet=',
                         '--max_image_pixels=1199')
    corrupt = json.loads(ended.stdout)['corrupt']
    assert len(corrupt) == 14 and all('0 pixels, above the limit' in row['reason']
                                      for row in corrupt)
    (tmp_path / 'raw' / 'Val' / '4').mkdir()
    (tmp_path / 'raw' / 'Val' / '4' / 'broken_disk.jpg').symlink_to('/proc/self/mem')
    shutil.rmtree(str(data_dir))
    assert_one_sentence(programs.run(*command),
                        f'{tmp_path}/raw/Val/4/broken_disk.jpg: cannot be read (Input/output '
                        'error)')


def test_imagenet_from_its_tar_files(run, photos, tmp_path):
    def tar(path, files):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode='w') as archive:
            for name, content in files:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue() if path is None else path.write_bytes(file.getvalue())

    synsets = ('n01440764', 'n02119789')
    tar(tmp_path / 'ILSVRC2012_img_train.tar', [
        (f'{synset}.tar', tar(None, [(f'{synset}_{index}.JPEG', photos[10 * row + index][1])
                                     for index in range(3)]))
        for row, synset in enumerate(synsets)])
    tar(tmp_path / 'ILSVRC2012_img_val.tar', [
        (f'ILSVRC2012_val_{index:08d}.JPEG', photos[index][1]) for index in (1, 2, 3)])
    (tmp_path / 'labels').write_text('\n'.join([synsets[1], synsets[0], synsets[1]]))
    (tmp_path / 'boxes').write_text('n01440764_1.JPEG,0.25,0.5,0.75,1.0\n')
    completed = create(run, tmp_path, tmp_path / 'data', f'--synset_labels={tmp_path}/labels',
                       f'--bounding_boxes={tmp_path}/boxes', source='imagenet')
    assert completed.returncode == 0, completed.stderr
    records = {feature[schema.IMAGE_FILENAME][0].decode(): feature
               for split in schema.SPLITS for feature in features(tmp_path / 'data', split)}
    assert len(records) == 9
    for name, (photo, label) in {
            'n01440764_1.JPEG': (1, 1), 'n02119789_2.JPEG': (12, 2),
            'ILSVRC2012_val_00000001.JPEG': (1, 2), 'ILSVRC2012_val_00000002.JPEG': (2, 1)}.items():
        assert records[name][schema.IMAGE_ENCODED] == [photos[photo][1]]
        assert records[name][schema.CLASS_LABEL] == [label]
        assert records[name][schema.CLASS_SYNSET] == [synsets[label - 1].encode()]
    boxed = records['n01440764_1.JPEG']
    assert [boxed[key] for key in schema.BOX_CORNERS] == [[0.25], [0.5], [0.75], [1.0]]
    assert boxed[schema.BOX_LABEL] == [1]
    assert records['n01440764_2.JPEG'][schema.BOX_LABEL] == []


@pytest.mark.parametrize('flags, texts', [
    (['--raw_dir=/no/such'], ['/no/such']),
    (['--raw_dir='], ['--raw_dir']),
    (['--output_dir=/dev/null/data'], ['/dev/null/data', 'not a directory']),
    (['--output_dir='], ['--output_dir']),
    (['--validation_fraction=1.5'], ['--validation_fraction=1.5']),
    (['--synset_labels=x'], ['--synset_labels', '--source=folder']),
    (['--jpeg_quality=80'], ['--jpeg_quality=80', '--max_short_side']),
    (['--num_train_shards=9999'], ['--num_train_shards=9999', '4000']),
    (['--source=imagenet'], ['synsets'])])
def test_mistakes_write_nothing(run, digit_folders, tmp_path, flags, texts):
    completed = create(run, digit_folders, tmp_path / 'data', *flags)
    assert_one_sentence(completed, *texts)
    assert not (tmp_path / 'data').exists()


def test_a_picture_a_class_leaves_none_for_validation(run, photos, tmp_path):
    for class_name in ('a', 'b'):
        (tmp_path / 'raw' / class_name).mkdir(parents=True)
        (tmp_path / 'raw' / class_name / 'x.jpg').write_bytes(photos[0][1])
    assert_one_sentence(create(run, tmp_path / 'raw', tmp_path / 'data'),
                        'no validation images; provide at least two images of a class')
    assert not (tmp_path / 'data').exists()


def test_an_output_in_the_folder_of_classes_is_refused(run, digit_folders):
    classes = os.path.join(digit_folders, 'train')
    assert_one_sentence(create(run, classes, os.path.join(classes, 'out')), 'is inside --raw_dir')
    assert sorted(os.listdir(classes)) == sorted(digits.CLASS_NAMES)


def test_a_class_of_broken_images_is_no_data_set(run, photos, tmp_path):
    for class_name, content in (('a', photos[0][1]), ('b', b'broken')):
        (tmp_path / 'raw' / class_name).mkdir(parents=True)
        for index in range(20):
            (tmp_path / 'raw' / class_name / f'{index}.jpg').write_bytes(content)
    assert_one_sentence(create(run, tmp_path / 'raw', tmp_path / 'data'),
                        'b: no training image of this class can be used (for example b/',
                        'not an image that Pillow can decode')
    assert not (tmp_path / 'data').exists()
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'mine.txt').write_text('kept')
    for index in range(20):
        (tmp_path / 'raw' / 'a' / f'{index}.jpg').write_bytes(b'')
    assert_one_sentence(create(run, tmp_path / 'raw', tmp_path / 'data'),
                        ' images can be used (for example ')
    assert os.listdir(str(tmp_path / 'data')) == ['mine.txt']


def test_inspect_finds_what_is_wrong(run, digits_dir, tmp_path):
    data_dir = shutil.copytree(digits_dir, tmp_path / 'data')
    train = [list(tf.io.tf_record_iterator(path)) for path in schema.find_shards(
        digits_dir, 'train')]
    example = tf.train.Example.FromString(train[1][4])
    example.features.feature[schema.CLASS_LABEL].int64_list.value[:] = [11]
    train[1][4] = example.SerializeToString()
    example.features.feature[schema.CLASS_LABEL].int64_list.value[:] = [3]
    example.features.feature[schema.IMAGE_ENCODED].bytes_list.value[:] = [b'\xff\xd8\xff broken']
    train[1][7] = example.SerializeToString()
    train[2][5] = next(tf.io.tf_record_iterator(schema.find_shards(digits_dir, 'validation')[1]))
    for index, records in enumerate(train):
        path = data_dir / schema.shard_name('train', index, 4)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
        content = bytearray(path.read_bytes())
        if index == 0:  # a flipped bit in the data of record 2, and the end is missing
            content[sum(16 + len(record) for record in records[:2]) + 60] ^= 1
            path.write_bytes(bytes(content[:-30]))
        if index == 3:  # the length of record 6 is wrong
            content[sum(16 + len(record) for record in records[:6]) + 1] ^= 1
            path.write_bytes(bytes(content))

    completed = run('-m', 'dataset.inspect', f'--data_dir={data_dir}', '--json',
                    f'--contact_sheet={tmp_path}/sheet.png')
    assert completed.returncode == 0, completed.stderr
    findings = json.loads(completed.stdout)
    assert [(row['shard'][:11], row['index']) for row in findings['corrupt']] == [
        ('train-00000', 2), ('train-00000', 999), ('train-00001', 7), ('train-00003', 6)]
    assert [row['reason'].split(' (')[0] for row in findings['corrupt']] == [
        'its checksum is wrong', 'the shard is truncated within this record',
        'its image cannot be decoded',
        'its header is corrupt or truncated, so the rest of the shard is unreadable']
    assert findings['duplicates'] == [{'train': 'train-00002-of-00004:5',
                                       'validation': 'validation-00001-of-00002:0'}]
    assert findings['contradictions'] == [
        'train has 3003 usable images, dataset_info.json says 4000.',
        'train has label 11, dataset_info.json says 1 to 10.']
    assert findings['splits']['validation']['num_images'] == 1000
    assert findings['splits']['validation']['labels'][7] == {
        'label': 8, 'name': 'seven', 'count': 100}
    assert findings['splits']['validation']['sizes']['width'] == {
        'min': 28, 'median': 28, 'max': 28}
    sheet = Image.open(str(tmp_path / 'sheet.png'))
    assert sheet.format == 'PNG' and np.asarray(sheet).std() > 10

    text = run('-m', 'dataset.inspect', f'--data_dir={data_dir}').stdout
    assert 'train-00001-of-00004, record 7: its image cannot be decoded' in text
    assert 'train-00002-of-00004:5 equals validation-00001-of-00002:0' in text
    assert (data_dir / 'contact_sheet.png').exists()


def test_inspect_says_that_it_cannot_draw_before_it_looks(run, digits_dir, tmp_path):
    for path in pathlib.Path(digits_dir).iterdir():
        (tmp_path / path.name).symlink_to(path)
    sheet = tmp_path / 'contact_sheet.png'
    sheet.mkdir()
    completed = run('-m', 'dataset.inspect', f'--data_dir={tmp_path}')
    assert_one_sentence(completed, f'--contact_sheet={sheet}')
    assert not completed.stdout


@pytest.mark.parametrize('flags, texts', [
    (['--data_dir=/no/such'], ['/no/such']), ([], ['--data_dir']),
    (['--data_dir=DIGITS', '--contact_sheet=/dev/null/x.png'], ['/dev/null/x.png'])])
def test_inspect_mistakes_are_one_sentence(run, digits_dir, flags, texts):
    assert_one_sentence(run('-m', 'dataset.inspect', *(
        flag.replace('DIGITS', digits_dir) for flag in flags)), *texts)
