"""The settings of what is read, and in which portions."""
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


def _num_train_images(config, dataset):
    """The images of the training split, less the share that --holdout_shards leaves out."""
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
    """What is read, and in which portions."""
    data_dir: str = setting.row(
        '', 'Folder with the TFRecord shards train-?????-of-????? and validation-?????-of-?????; '
        '"synthetic" for generated images and no files.')
    train_pattern: Optional[str] = _layout_setting('train_pattern')
    eval_pattern: Optional[str] = _layout_setting('eval_pattern')
    image_key: Optional[str] = _layout_setting('image_key')
    label_key: Optional[str] = _layout_setting('label_key')
    compression: Optional[str] = _layout_setting('compression')
    batch_size: int = setting.row(
        128, 'Training images per step and device; with --gradient_accumulation_steps, per '
        'micro-batch. --train_batch_size is another name for it.',
        at_least=1, at_most=setting.LARGEST_BATCH_SIZE)
    eval_batch_size: Optional[int] = setting.row(
        None, 'Images per evaluation step; default: --batch_size.',
        derived=lambda config, dataset: config.data.batch_size, at_least=1,
        at_most=setting.LARGEST_BATCH_SIZE)
    num_train_images: Optional[int] = setting.row(
        None, "Images an epoch has; default: dataset_info.json's, else ImageNet's 1281167.",
        derived=_num_train_images, at_least=1)
    num_eval_images: Optional[int] = setting.row(
        None, 'Evaluate the first so many images only; default: all of them.', at_least=1)
    label_base: Optional[int] = setting.row(
        None, "Label of the first class in the records; default: dataset_info.json's, else 0 with "
        'the label key of TFDS, else 1.',
        derived=lambda config, dataset: config.data.layout.label_base(
            config.data.data_dir, dataset), at_least=0, at_most=1)
    class_names: Optional[str] = setting.row(
        None, 'File with the name of each class, to show: JSON, CSV, or text with a name a line; '
        "default: dataset_info.json's.")
    class_names_from: Optional[str] = setting.row(
        None, 'What holds where the data have other class names than the model, or another order. '
        'model: classes of one name are the same; data: labels stand as they are. Default: an '
        'error.', choices=class_labels.SOURCES)
    holdout_shards: Optional[int] = setting.row(
        None, 'Train without this many of the training shards, and evaluate on them.', at_least=1)
    min_crop_area: float = setting.row(
        0.08, 'Smallest share of a training image that its random crop may have.',
        above=0, at_most=1)
    random_flip: bool = setting.row(True, 'Mirror half of the training images left to right.')
    augment_name: Optional[str] = setting.row(
        None, 'Augmentation of training images beyond crop and mirror; default: none.',
        choices=('autoaugment', 'randaugment'))
    randaug_num_layers: int = setting.row(
        2, 'RandAugment: operations an image.', at_least=1, at_most=100)
    randaug_magnitude: float = setting.row(
        10.0, "RandAugment: strength of each operation; 10 is AutoAugment's strongest.",
        at_least=0, at_most=100)
    augment_scale: str = setting.row(
        autoaugment.ABSOLUTE, 'Distances of translations and Cutout. absolute: in pixels, as '
        'published, more than a small image has; relative: scaled by the shorter side / 224.',
        choices=autoaugment.SCALES)
    sampling: str = setting.row(
        SHUFFLED, 'How training records are drawn. shuffled: each once an epoch; balanced: '
        'repeated or left out, so that an epoch has as many images of each class, and as many in '
        'all as before.', choices=SAMPLINGS)
    mixup_alpha: float = setting.row(
        0.0, 'Mixup (arXiv:1710.09412) with Beta(alpha, alpha) weights; 0 is off.', at_least=0,
        at_most=1000)
    cutmix_alpha: float = setting.row(
        0.0, 'CutMix (arXiv:1905.04899): the box has a Beta(alpha, alpha) share of the image; 0 is '
        'off. With --mixup_alpha, each batch gets one of the two, at random.', at_least=0,
        at_most=1000)
    random_erasing_prob: float = setting.row(
        0.0, 'Random erasing (arXiv:1708.04896): share of the training images in which a rectangle '
        'of 2 to 33 % of the area is filled with noise.', at_least=0, at_most=1)
    color_jitter: float = setting.row(
        0.0, 'Change brightness, contrast and saturation of a training image by random factors '
        'from 1 - strength to 1 + strength; 0 is off.', at_least=0, at_most=1)
    vertical_flip: bool = setting.row(
        False, 'Mirror half of the training images top to bottom.')
    use_cache: bool = setting.row(
        False, 'Keep the encoded training images in memory after the first epoch.')
    num_parallel_calls: Optional[int] = setting.row(
        None, 'Threads that decode images; default: the cores of the machine, shared out among '
        'the ranks on it.', at_least=1, at_most=1024)
    read_ahead_mb: int = setting.row(
        reader.READ_AHEAD_MB, 'Records that each rank reads ahead, in MB: more bridges longer '
        'pauses of network storage. The order of the images stays the same.', at_least=1,
        at_most=100000)
    transpose_input: bool = setting.row(
        False, 'Hand images to the device as [height, width, 3, batch].')
    max_bad_records: int = setting.row(
        0, 'Bad records (truncated, no image, CMYK, 16 bits, animated, too large, label out of '
        'range) that may be skipped; 0 stops at the first one, with its name. From 1 on, all '
        'records are looked through once before the run begins.', at_least=0)
    max_image_pixels: int = setting.row(
        image_formats.MAX_IMAGE_PIXELS, 'A record with an image of more pixels (height x width) is '
        'bad. The limit keeps decompression bombs out.', at_least=1)
    random_seed: Optional[int] = setting.row(
        None, 'Makes two runs equal: data order, crops, augmentation, mixup, initial weights, '
        'dropout. Bit for bit in one process on a CPU; elsewhere the order in which the device '
        'adds up stays random, less so with --deterministic. Default: no two runs are equal.',
        at_least=0)

    @property
    def layout(self):
        """The `layout.Layout` of the shards."""
        return layout.Layout.of(vars(self))
