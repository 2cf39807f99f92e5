"""The settings of the input data: dataset, batches, sampling and augmentation."""
import dataclasses
from typing import Optional

import autoaugment
from config import setting
from tfrecords import class_labels
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import reader
from tfrecords import schema

# Values of --sampling.
SHUFFLED, BALANCED = SAMPLINGS = 'shuffled', 'balanced'
LARGEST_READ_AHEAD_MB = 100_000


def _num_train_images(config, dataset):
    """Returns the number of training images, without the share that --holdout_shards removes."""
    data, num_images = config.data, dataset.num_images[schema.TRAIN]
    if not data.holdout_shards or data.data_dir == schema.SYNTHETIC_DIR:
        return num_images
    shards = data.layout.find_shards(data.data_dir, schema.TRAIN, data.max_bad_records > 0)
    return max(1, num_images * (len(shards) - data.holdout_shards) // len(shards))


def _layout_setting(name):
    help_text, choices = layout.FLAGS[name]
    return setting.row(None, help_text, choices=choices)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The input data: dataset, batches, sampling and augmentation."""
    data_dir: str = setting.row(
        '', 'Directory of the TFRecord shards train-?????-of-????? and '
        'validation-?????-of-?????; "synthetic" generates images and reads no files.')
    train_pattern: Optional[str] = _layout_setting('train_pattern')
    eval_pattern: Optional[str] = _layout_setting('eval_pattern')
    image_key: Optional[str] = _layout_setting('image_key')
    label_key: Optional[str] = _layout_setting('label_key')
    compression: Optional[str] = _layout_setting('compression')
    batch_size: int = setting.row(
        128, 'Training images per device and step; with --gradient_accumulation_steps, per device '
        'and micro-batch. --train_batch_size is another name for this flag.',
        at_least=1, at_most=setting.LARGEST_BATCH_SIZE)
    eval_batch_size: Optional[int] = setting.row(
        None, 'Images per evaluation step; default: --batch_size.',
        derived=lambda config, dataset: config.data.batch_size, at_least=1,
        at_most=setting.LARGEST_BATCH_SIZE)
    num_train_images: Optional[int] = setting.row(
        None, 'Number of training images per epoch; default: the number in dataset_info.json, else '
        "ImageNet's 1281167.",
        derived=_num_train_images, at_least=1)
    num_eval_images: Optional[int] = setting.row(
        None, 'Evaluate only the first N validation images; default: all of them.', at_least=1)
    label_base: Optional[int] = setting.row(
        None, 'Label of the first class in the records, 0 or 1; default: the value in '
        'dataset_info.json, else 0 with the label key of TFDS, else 1.',
        derived=lambda config, dataset: config.data.layout.label_base(
            config.data.data_dir, dataset), at_least=0, at_most=1)
    class_names: Optional[str] = setting.row(
        None, 'File of the class names to display: JSON, CSV, or text with one name per line; '
        'default: the names in dataset_info.json.')
    class_names_from: Optional[str] = setting.row(
        None, 'How labels are mapped if the class names of the dataset differ from those of the '
        'model, or their order differs. model: match classes by name; data: use the labels of the '
        'dataset unchanged. Default: stop with an error.', choices=class_labels.SOURCES)
    holdout_shards: Optional[int] = setting.row(
        None, 'Number of training shards to hold out: they are used for evaluation instead of '
        'training.', at_least=1)
    min_crop_area: float = setting.row(
        0.08, 'Minimum area of the random crop, as a fraction of the training image.',
        above=0, at_most=1)
    random_flip: bool = setting.row(
        True, 'Flip training images left to right with probability 0.5.')
    augment_name: Optional[str] = setting.row(
        None, 'Augmentation policy for training images, in addition to crops and flips; default: '
        'none.',
        choices=('autoaugment', 'randaugment'))
    randaug_num_layers: int = setting.row(
        2, 'RandAugment: number of operations applied to each image.', at_least=1, at_most=100)
    randaug_magnitude: float = setting.row(
        10.0, 'RandAugment: magnitude of each operation; 10 is the maximum of AutoAugment.',
        at_least=0, at_most=100)
    augment_scale: str = setting.row(
        autoaugment.ABSOLUTE, 'Unit of the distances of translations and Cutout. absolute: pixels, '
        'as published, which can exceed the size of a small image; relative: pixels scaled by '
        '(shorter side / 224).',
        choices=autoaugment.SCALES)
    sampling: str = setting.row(
        SHUFFLED, 'How training records are sampled. shuffled: each record once per epoch; '
        'balanced: records are repeated or dropped so that every class has the same number of '
        'images per epoch; the length of the epoch does not change.', choices=SAMPLINGS)
    mixup_alpha: float = setting.row(
        0.0, 'Alpha of mixup (arXiv:1710.09412): images are mixed with weights from Beta(alpha, '
        'alpha); 0 disables mixup.', at_least=0, at_most=1000)
    cutmix_alpha: float = setting.row(
        0.0, 'Alpha of CutMix (arXiv:1905.04899): the box covers a share of the image from '
        'Beta(alpha, alpha); 0 disables CutMix. If --mixup_alpha is set too, each batch gets one '
        'of the two at random.', at_least=0, at_most=1000)
    random_erasing_prob: float = setting.row(
        0.0, 'Probability of random erasing (arXiv:1708.04896): a rectangle of 2 to 33 % of the '
        'area of a training image is filled with noise; 0 disables it.', at_least=0, at_most=1)
    color_jitter: float = setting.row(
        0.0, 'Strength of color jitter: brightness, contrast and saturation of a training image '
        'are multiplied by random factors from 1 - strength to 1 + strength; 0 disables it.',
        at_least=0, at_most=1)
    vertical_flip: bool = setting.row(
        False, 'Flip training images top to bottom with probability 0.5.')
    use_cache: bool = setting.row(
        False, 'Cache the encoded training images in memory during the first epoch.')
    num_parallel_calls: Optional[int] = setting.row(
        None, 'Number of threads that decode images; default: the CPU cores of the machine, '
        'divided among its ranks.', at_least=1, at_most=1024)
    read_ahead_mb: int = setting.row(
        reader.READ_AHEAD_MB, 'Size of the read-ahead buffer of each rank in MB; a larger buffer '
        'bridges longer pauses of network storage. The order of the images does not depend on it.',
        at_least=1, at_most=LARGEST_READ_AHEAD_MB)
    transpose_input: bool = setting.row(
        False, 'Pass image batches to the device as [height, width, 3, batch].')
    max_bad_records: int = setting.row(
        0, 'Maximum number of bad records to skip (truncated, no image, CMYK, 16 bits, animated, '
        'too large, label out of range). 0 stops at the first bad record and names it; with a '
        'larger value, all records are validated once before the run starts.', at_least=0)
    max_image_pixels: int = setting.row(
        image_formats.MAX_IMAGE_PIXELS, 'Maximum number of pixels (height x width) of an image; a '
        'record with a larger image is bad. The limit protects against decompression bombs.',
        at_least=1)
    random_seed: Optional[int] = setting.row(
        None, 'Seed of data order, crops, augmentation, mixup, initial weights and dropout. Two '
        'runs with the same seed are bit-identical in one process on a CPU; otherwise the '
        'summation order on the device varies, less with --deterministic. Default: every run '
        'differs.', at_least=0)

    @property
    def layout(self):
        """The `layout.Layout` of the shards."""
        return layout.Layout.of(vars(self))
