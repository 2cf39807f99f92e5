"""What is found in folders and in ImageNet's files, and what is said when it is not there."""
import contextlib
import io
import os
import re
import resource
import tarfile

import numpy as np
import pytest

from common.errors import UserError
from dataset import image_files
from dataset import imagenet
from dataset import sources


def put(root, *names, content=b'image'):
    for name in names:
        path = os.path.join(str(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as file:
            file.write(content + name.encode())
    return str(root)


@contextlib.contextmanager
def unprivileged():
    """A part of a test in which root has the rights of nobody."""
    user = os.geteuid()
    if not user:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def listed(source, split):
    """Sorted (name, class's name, bytes) of a split."""
    images = source.images[split]
    return sorted((images.name(row), source.class_names[images.classes[row]], images.read(row))
                  for row in source.rows[split])


def test_classes_are_folders_in_the_order_of_their_names(tmp_path):
    raw_dir = put(tmp_path, 'wren/b.JPG', 'wren/deeper/c.png', 'robin/a.jpeg', 'robin/notes.txt',
                  'robin/.hidden.jpg', '.git/x.jpg', '__MACOSX/y.jpg', 'wren/Thumbs.db',
                  'stray.jpg', '.DS_Store')
    source = sources.folder(raw_dir, validation_fraction=0.5)
    assert source.class_names == ('robin', 'wren')
    everything = listed(source, 'train') + listed(source, 'validation')
    assert sorted(everything) == [
        ('robin/a.jpeg', 'robin', b'imagerobin/a.jpeg'), ('wren/b.JPG', 'wren', b'imagewren/b.JPG'),
        ('wren/deeper/c.png', 'wren', b'imagewren/deeper/c.png')]
    reasons = dict(source.ignored)
    assert set(reasons) == {'.DS_Store', '.git/', '__MACOSX/', 'robin/.hidden.jpg',
                            'robin/notes.txt', 'stray.jpg', 'wren/Thumbs.db'}
    assert reasons['robin/notes.txt'] == 'its name has no extension of an image'
    assert 'outside the class directories' in reasons['stray.jpg']


@pytest.mark.parametrize('train, validation', [
    ('train', 'validation'), ('train', 'val'), ('Train', 'Valid'), ('TRAINING', 'VAL'),
    ('Training', 'Testing'), ('Train', 'Test'), ('train', 'test')])
def test_folders_of_splits_are_taken_as_they_are(tmp_path, train, validation):
    raw_dir = put(tmp_path, f'{train}/a/1.jpg', f'{train}/b/2.jpg', f'{validation}/b/3.jpg')
    source = sources.folder(raw_dir)
    assert [row[:2] for row in listed(source, 'validation')] == [(f'{validation}/b/3.jpg', 'b')]
    assert [row[:2] for row in listed(source, 'train')] == [
        (f'{train}/a/1.jpg', 'a'), (f'{train}/b/2.jpg', 'b')]
    assert source.class_names == ('a', 'b') and not source.ignored


@pytest.mark.parametrize('names, fraction, validation, left_out', [
    (('val/a/3.jpg', 'test/a/4.jpg'), None, 'val/a/3.jpg', 'test/'),
    (('Val/a/3.jpg', 'extra/a/4.jpg', 'out/x'), None, 'Val/a/3.jpg', 'extra/'),
    (('test/a/4.jpg',), 0.5, 'train/a/1.jpg', 'test/'),
    (('test/4.jpg', 'test/5.jpg'), None, 'train/a/1.jpg', 'test/')])
def test_what_lies_beside_the_splits_is_named(tmp_path, caplog, names, fraction, validation,
                                              left_out):
    raw_dir = put(tmp_path, 'train/a/1.jpg', 'train/a/2.jpg', 'train/b/1.jpg', 'train/b/2.jpg',
                  *names, 'labels.csv')
    source = sources.folder(raw_dir, fraction, seed=1, output_dir=f'{raw_dir}/out/data')
    assert listed(source, 'validation')[0][0] == validation
    assert [name for name, _ in source.ignored] == sorted(['labels.csv', left_out])
    assert f'{raw_dir}/{left_out[:-1]} is skipped' in caplog.text
    assert 'labels.csv' not in caplog.text


def test_classes_are_in_the_order_of_names_or_numbers(tmp_path):
    raw_dir = put(tmp_path, *(f'{index}/{image}.jpg' for index in range(12) for image in (1, 2)))
    assert sources.folder(raw_dir).class_names == tuple(sorted(map(str, range(12))))
    source = sources.folder(raw_dir, order=sources.BY_NUMBER)
    assert source.class_names == tuple(map(str, range(12)))
    assert [row[1] for row in listed(source, 'train') if row[0].startswith('10/')] == ['10']
    assert sources.in_order(['b', 'class_10', 'class_9', '7a', '007'], sources.BY_NUMBER) == [
        '007', '7a', 'b', 'class_9', 'class_10']


@pytest.mark.parametrize('fraction, per_class', [(None, (10, 2, 1)), (0.25, (25, 4, 1)),
                                                 (0.001, (1, 1, 1)), (0.999, (99, 14, 1))])
def test_the_split_is_stratified_and_repeatable(tmp_path, fraction, per_class):
    counts = {'a': 100, 'b': 15, 'c': 2}
    raw_dir = put(tmp_path, *(f'{name}/{index}.jpg' for name, count in counts.items()
                              for index in range(count)))
    source = sources.folder(raw_dir, fraction, seed=3)
    images = source.images['validation']
    assert np.bincount(images.classes[source.rows['validation']]).tolist() == list(per_class)
    both = np.concatenate([source.rows['train'], source.rows['validation']])
    assert sorted(both) == list(range(117))
    again, other = (sources.folder(raw_dir, fraction, seed=seed) for seed in (3, 4))
    assert listed(again, 'validation') == listed(source, 'validation')
    assert listed(other, 'validation') != listed(source, 'validation')


def test_names_need_not_be_text(tmp_path):
    os.makedirs(str(tmp_path / 'träd'))
    os.makedirs(str(tmp_path / '花'))
    for folder in ('träd', '花'):
        with open(os.path.join(os.fsencode(str(tmp_path / folder)), b'\xff\xfe.jpg'), 'wb') as file:
            file.write(b'image')
    source = sources.folder(str(tmp_path))
    assert source.class_names == ('träd', '花')
    assert [row[2] for row in listed(source, 'train')] == [b'image', b'image']
    assert sources.text(source.images['train'].name(0)) == 'träd/��.jpg'


def test_there_may_be_a_million_classes(tmp_path):
    listed_images = sources.ImageList(str(tmp_path))
    listed_images.add('x.jpg', 999999, 1)
    assert listed_images.classes.tolist() == [999999]


@pytest.mark.parametrize('names, fraction, words', [
    ((), None, 'contains no directories'),
    (('a.jpg', 'b.jpg'), None, 'contains no directories'),
    (('a/1.jpg',), None, 'contains only one class, a'),
    (('a/1.jpg', 'b/notes.txt'), None, '/b: contains no images'),
    (('a/1.jpg', 'line\nbreak/1.jpg'), None, "the directory name 'line\\nbreak'"),
    (('a/1.jpg', 'line\u2028break/1.jpg'), None, 'rename the directory'),
    (('train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg'), 0.1, '--validation_fraction'),
    (('train/a/1.jpg', 'train/b/1.jpg', 'val/c/1.jpg'), None, '/val/c: this class has no training'),
    (('train/a/1.jpg', 'train/b/1.jpg', 'val/b/1.txt'), None, '/val/b: contains no images'),
    (('train/a/1.jpg', 'train/b/1.jpg', 'val/1.jpg'), None, '/val: contains no directories of'),
    (('validation/a/1.jpg', 'validation/b/1.jpg'), None, 'no directory train'),
    (('Test/a/1.jpg', 'cat/1.jpg'), None, 'no directory train'),
    (('train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg', 'Valid/a/2.jpg'), None, 'keep one'),
    (('Train/a/1.jpg', 'train/b/1.jpg', 'val/a/1.jpg'), None, 'keep one'),
    (('train_set/a/1.jpg', 'test_set/a/1.jpg'), None, 'look like splits'),
    (('seg_train/1.jpg', 'seg_pred/1.jpg', 'seg_test/1.jpg'), None, 'look like splits'),
    (('TrainImages/a/1.jpg', 'ValImages/a/1.jpg'), None, 'look like splits'),
    (('train2017/a/1.jpg', 'val2017/a/1.jpg'), None, 'look like splits'),
    (('训练集/a/1.jpg', '测试集/a/1.jpg'), None, 'look like splits'),
    (('cat/train/1.jpg', 'cat/test/2.jpg', 'dog/train/1.jpg'), None, 'look like splits'),
    (('images/Train/1.jpg', 'images/Val/2.jpg', 'labels/x/1.txt'), None, 'look like splits'),
    (('train/seg_train/1.jpg', 'train/seg_test/1.jpg'), None, 'look like splits'),
    (('archive/Train/a/1.jpg', 'archive/Test/a/1.jpg'), None, 'name the directory in which'),
])
def test_a_wrong_folder_is_one_sentence(tmp_path, names, fraction, words):
    raw_dir = put(tmp_path / 'raw', *names)
    os.makedirs(raw_dir, exist_ok=True)
    with pytest.raises(UserError) as raised:
        sources.folder(raw_dir, fraction)
    assert words in str(raised.value) and raw_dir in str(raised.value)


def test_classes_may_be_called_like_parts_of_splits(tmp_path):
    raw_dir = put(tmp_path, *(f'{name}/{index}.jpg' for name in (
        'bullet_train', 'protest', 'valley', 'trainer', 'contest') for index in (1, 2)))
    assert len(sources.folder(raw_dir).class_names) == 5
    raw_dir = put(tmp_path / 'more', *(f'{name}/{index}.jpg' for name in (
        'bullet_train', 'test_tube', 'cat') for index in (1, 2)))
    assert len(sources.folder(raw_dir).class_names) == 3


def test_errors_of_reading_are_no_bad_images(tmp_path):
    raw_dir = put(tmp_path, 'a/1.jpg', 'a/2.jpg', 'a/3.jpg', 'a/4.jpg', 'b/1.jpg', 'b/2.jpg')
    names = {name: f'{raw_dir}/a/{name}.jpg' for name in '1234'}
    os.symlink('loop.jpg', f'{raw_dir}/a/loop.jpg')
    for path, target in ((names['2'], '/no/such/file'), (names['3'], '/proc/self/mem')):
        os.remove(path)
        os.symlink(target, path)
    images = sources.folder(raw_dir).images['train']
    os.remove(names['4'])
    rows = {images.name(row): row for row in range(len(images))}
    for name in ('a/2.jpg', 'a/loop.jpg'):
        with pytest.raises(image_files.BadImageError, match='a broken symbolic link'):
            images.read(rows[name])
    os.chmod(f'{raw_dir}/a/1.jpg', 0)
    with unprivileged(), pytest.raises(UserError, match='1.jpg: cannot be read .Permission denied'):
        images.read(rows['a/1.jpg'])
    with pytest.raises(UserError, match=re.escape(
            f"{names['3']}: cannot be read (Input/output error); check the disk and")):
        images.read(rows['a/3.jpg'])
    with pytest.raises(UserError, match='4.jpg: cannot be read .No such file or directory.;'):
        images.read(rows['a/4.jpg'])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(UserError, match='1.jpg: cannot be read .Too many open files.; raise'):
            images.read(rows['a/1.jpg'])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_folder_is_one_sentence(tmp_path):
    for raw_dir in ('', None, str(tmp_path / 'nowhere'), put(tmp_path, 'file') + '/file'):
        with pytest.raises(UserError, match='--raw_dir'):
            sources.folder(raw_dir)


# ILSVRC 2012 in small: three synsets of two images, four validation images.
SYNSETS = ('n01440764', 'n01443537', 'n02119789')
TRAIN = {synset: [f'{synset}_{number}.JPEG' for number in (7, 12)] for synset in SYNSETS}
VALIDATION = [f'ILSVRC2012_val_{number:08d}.JPEG' for number in (1, 2, 3, 4)]
CLASSES = (2, 0, 0, 1)
VALIDATION_SYNSETS = [SYNSETS[index] for index in CLASSES]
NAMES = 'n01440764 tench, Tinca tinca\nn01443537 goldfish\nn02119789 kit fox\n'
KIT = 'n02119789 1 kit_fox\nn01440764 2 tench\nn01443537 3 goldfish\n'


def tar_of(files):
    """Bytes of a tar file of (name, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def inner_tar(synset):
    return tar_of((name, f'image{name}'.encode()) for name in TRAIN[synset])


def write(path, content):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(str(path), 'wb') as file:
        file.write(content)


def make_train(folder, form):
    if form == 'tar':
        write(folder / 'ILSVRC2012_img_train.tar',
              tar_of((f'{synset}.tar', inner_tar(synset)) for synset in reversed(SYNSETS)))
    elif form == 'inner tars':
        for synset in SYNSETS:
            write(folder / 'train' / f'{synset}.tar', inner_tar(synset))
    else:
        for synset in SYNSETS:
            for name in TRAIN[synset]:
                write(folder / 'train' / synset / name, f'image{name}'.encode())


def make_validation(folder, form, labels=None):
    labels = '\n'.join(VALIDATION_SYNSETS) if labels is None else labels
    files = [(name, f'image{name}'.encode()) for name in VALIDATION]
    if form == 'tar':
        write(folder / 'ILSVRC2012_img_val.tar', tar_of(reversed(files)))
    for (name, content), synset in zip(files, VALIDATION_SYNSETS):
        if form == 'flat':
            write(folder / 'val' / name, content)
        elif form == 'synsets':
            write(folder / 'validation' / synset / name, content)
    if form != 'synsets':
        write(folder / 'labels', labels.encode())
        return str(folder / 'labels')
    return None


@pytest.mark.parametrize('train_form, validation_form', [
    ('tar', 'tar'), ('inner tars', 'flat'), ('folders', 'synsets')])
def test_imagenet_is_read_from_tars_and_folders(tmp_path, train_form, validation_form):
    make_train(tmp_path, train_form)
    labels = make_validation(tmp_path, validation_form)
    write(tmp_path / 'names', NAMES.encode())
    source = imagenet.listing(str(tmp_path), labels, str(tmp_path / 'names'))
    assert source.synsets == SYNSETS
    assert source.class_names == ('tench, Tinca tinca', 'goldfish', 'kit fox')
    for split, expected in (
            ('train', [(name, index) for index, synset in enumerate(SYNSETS)
                       for name in TRAIN[synset]]),
            ('validation', list(zip(VALIDATION, CLASSES)))):
        found = [(os.path.basename(name), class_name, content)
                 for name, class_name, content in listed(source, split)]
        assert sorted(found) == sorted(
            (name, source.class_names[index], f'image{name}'.encode()) for name, index in expected)
    assert imagenet.listing(str(tmp_path), labels).class_names == SYNSETS


@pytest.mark.parametrize('text, names', [
    ('\n'.join(VALIDATION_SYNSETS), None),
    ('\n'.join(f'{name} {synset}' for name, synset in zip(VALIDATION, VALIDATION_SYNSETS)), None),
    ('ImageId,PredictionString\n' + ''.join(
        f'{name[:-5]},{synset} 1 2 3 4 {synset} 5 6 7 8\n'
        for name, synset in reversed(list(zip(VALIDATION, VALIDATION_SYNSETS)))), None),
    ('1\n2\n2\n3\n', KIT)])
def test_every_list_of_validation_labels_says_the_same(tmp_path, text, names):
    make_train(tmp_path, 'folders')
    labels = make_validation(tmp_path, 'flat', text)
    if names:
        write(tmp_path / 'names', names.encode())
    source = imagenet.listing(str(tmp_path), labels, names and str(tmp_path / 'names'))
    assert [source.images['validation'].classes[row] for row in range(4)] == list(CLASSES)


def test_a_list_of_labels_beside_the_images_is_found(tmp_path):
    make_train(tmp_path, 'folders')
    os.rename(make_validation(tmp_path, 'flat'), str(tmp_path / 'synset_labels.txt'))
    assert len(imagenet.listing(str(tmp_path)).rows['validation']) == 4


@pytest.mark.parametrize('text, words', [
    (None, 'no file gives the classes of the validation images; name one with a synset per line '
           'with --synset_labels'),
    ('n01440764\n' * 3, 'has 3 lines for 4 validation images'),
    ('n09999999\n' * 4, 'contains synset n09999999, which has no training images'),
    ('1\n2\n3\n1\n', 'numbers of the development kit'),
    ('tench\n' * 4, "'tench' has no synset"),
    ('ILSVRC2012_val_00000001.JPEG n01440764\n', 'has no line for ILSVRC2012_val_00000002')])
def test_wrong_validation_labels_are_one_sentence(tmp_path, text, words):
    make_train(tmp_path, 'folders')
    labels = make_validation(tmp_path, 'flat', text or '')
    with pytest.raises(UserError) as raised:
        imagenet.listing(str(tmp_path), labels if text else None)
    assert words in str(raised.value)


def test_missing_and_broken_imagenet_files_are_one_sentence(tmp_path):
    def message():
        with pytest.raises(UserError) as raised:
            imagenet.listing(str(tmp_path), labels)
        return str(raised.value)

    labels = None
    assert 'neither ILSVRC2012_img_train.tar nor a directory train' in message()
    os.makedirs(str(tmp_path / 'train'))
    assert 'no synsets such as n01440764' in message()
    make_train(tmp_path, 'tar')
    assert 'neither ILSVRC2012_img_val.tar nor a directory' in message()
    labels = make_validation(tmp_path, 'tar')
    path = tmp_path / 'ILSVRC2012_img_train.tar'
    content = path.read_bytes()
    for end in (len(content) // 2, 5000, 100):
        write(path, content[:end])
        assert 'cannot be read to the end' in message() or 'no synsets' in message()


def test_bounding_boxes_of_both_forms(tmp_path):
    write(tmp_path / 'boxes.csv', b'n01440764_7.JPEG,0.1,0.2,0.5,1.5\n'
                                  b'n01440764_7.JPEG,0.5,0.5,0.4,0.6\n')
    xml = ('<annotation><size><width>200</width><height>100</height></size><object><bndbox>'
           '<xmin>20</xmin><ymin>20</ymin><xmax>100</xmax><ymax>150</ymax></bndbox></object>'
           '</annotation>')
    write(tmp_path / 'train' / 'n01440764' / 'n01440764_7.xml', xml.encode())
    for path in (tmp_path / 'boxes.csv', tmp_path, tmp_path / 'train'):
        boxes = imagenet.BoundingBoxes(str(path))
        np.testing.assert_allclose(boxes.of('n01440764_7.JPEG', 'n01440764'), [(.1, .2, .5, 1.)])
        assert boxes.of('n01440764_12.JPEG', 'n01440764') == []
    write(tmp_path / 'boxes.csv', b'1,2,3\n')
    with pytest.raises(UserError, match='--bounding_boxes'):
        imagenet.BoundingBoxes(str(tmp_path / 'boxes.csv'))
