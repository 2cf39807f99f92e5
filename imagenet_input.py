"""Builds the input pipeline from TFRecord shards, and decodes the images of serving requests.

An `ImageNetInput` holds the settings of a pipeline; its `dataset()` builds the pipeline.
"""
import dataclasses
import functools
import os
from typing import Callable
from typing import Dict
from typing import Optional
from typing import Tuple

import numpy as np
import tensorflow.compat.v1 as tf

from common import input_waits
from common import mixing
from common.errors import UserError
from common.image_sizes import ImageSize
import preprocessing
from tfrecords import class_counts
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import reader
from tfrecords import resampling
from tfrecords import schema
from tfrecords import synthetic
from tfrecords import validation

SHUFFLED_RECORDS = 1024            # encoded, about 110 kB each for ImageNet
SHUFFLED_MB = 512                  # limit of the shuffle buffer if the records are larger
SHUFFLED_CACHED_RECORDS = 16384    # the cache already holds them in memory
PREFETCHED_BATCHES = 2

# The pipeline functions are plain graph code; AutoGraph conversion would cost 3 s at start-up.
_without_autograph = tf.autograph.experimental.do_not_convert


@dataclasses.dataclass(frozen=True)
class ImageNetInput:
    """The input pipeline of one process.

    Attributes:
        data_dir: str, directory or URL of the shards; `schema.SYNTHETIC_DIR` for generated images.
        shards: `layout.Layout`, how the shards are named and written.
        is_training: bool. Training is shuffled, distorted and endless; evaluation yields every
            image once, in order.
        image_size: `ImageSize` of the images, or int for a square.
        batch_size: int, images per batch of this process.
        num_classes: int, classes of the model. One more than the dataset has labels (1001 for
            ImageNet) makes class 0 a background class.
        label_base: int, 0 or 1, the label of the first class in the records.
        class_map: tuple of int, for each class in the records, the class of the model; empty if
            they are equal.
        class_names: tuple of str, one name per class of the model, or empty. Text labels are
            looked up in the class names of dataset_info.json, or here if it has none.
        resize_method: str, one of `preprocessing.RESIZE_METHODS`.
        min_crop_area: float in (0, 1], smallest share of an image that a training crop covers.
        random_flip: bool, whether half of the training images are mirrored left to right.
        vertical_flip: bool, whether half of them are mirrored top to bottom.
        augment, distortions: see `preprocessing.preprocess_for_train`.
        max_image_pixels: int, records with larger images are bad.
        mixup_alpha, cutmix_alpha: float, parameters of the Beta distributions of the mixing
            weights, see `mixing.draw`; 0 disables mixing.
        holdout_shards: None or int, the first N training shards are left out of training, and
            evaluation reads them instead of the validation split.
        class_rates: tuple of float, how often the training records of each class of the model are
            read per epoch, see `resampling.resampled`; empty for once.
        start_epoch: int, first epoch of the resampling.
        num_images: None or int, evaluation ends after this many images; None for all of them.
        use_cache: bool, whether to keep the encoded training records in memory.
        num_parallel_calls: None or int, images decoded in parallel; None for one per core.
        read_ahead_mb: int, size of the read-ahead buffer in 10^6 bytes.
        transpose_input: bool, whether images are [H, W, C, N] instead of [N, H, W, C].
        seed: None or int, at least 0. Runs with the same seed get the same batches. Without a seed
            every run differs, and images come in the order in which they are ready.
        start_step: int, training step of the first batch. With a seed, a resumed run then gets new
            batches instead of repeating the first ones.
        allow_empty_shards: bool, whether a shard of zero bytes is accepted as one without records.
        skipped: dict, path of a shard -> `reader.Skip`. If it is not empty, records that cannot be
            read are skipped too.
        on_wait: None or callable, called with the seconds that the consumer waited for each batch.
        rank, world_size: int, number of this process, from 0, and number of processes. Training
            records are sharded among them; evaluation reads all records on every rank.
    """
    data_dir: str
    is_training: bool
    image_size: ImageSize
    batch_size: int
    shards: layout.Layout = layout.DETECTED
    num_classes: int = schema.IMAGENET.num_classes
    label_base: int = schema.IMAGENET.label_base
    class_map: Tuple[int, ...] = ()
    class_names: Tuple[str, ...] = ()
    resize_method: str = 'bicubic'
    min_crop_area: float = preprocessing.MIN_RANDOM_CROP_AREA
    random_flip: bool = True
    vertical_flip: bool = False
    augment: Optional[Callable] = None
    distortions: Tuple[Callable, ...] = ()
    max_image_pixels: int = image_formats.MAX_IMAGE_PIXELS
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    holdout_shards: Optional[int] = None
    class_rates: Tuple[float, ...] = ()
    start_epoch: int = 0
    num_images: Optional[int] = None
    use_cache: bool = False
    num_parallel_calls: Optional[int] = None
    read_ahead_mb: int = reader.READ_AHEAD_MB
    transpose_input: bool = False
    seed: Optional[int] = None
    start_step: int = 0
    allow_empty_shards: bool = False
    skipped: Dict[str, reader.Skip] = dataclasses.field(default_factory=dict)
    on_wait: Optional[Callable[[float], None]] = None
    rank: int = 0
    world_size: int = 1

    def dataset(self):
        """Builds the pipeline in the current graph.

        Returns:
            tf.data.Dataset of `(images, labels)` with static shapes. `images` is raw RGB
            [batch_size, height, width, 3]: uint8 in training, where the device converts
            them, and float32 in about [0, 255] in evaluation. `labels` is a dict with
              - 'label', int32 [batch_size], the class in 0 .. num_classes - 1;
              - in evaluation 'weight', float32 [batch_size], 1 for an image and 0 for the padding
                that completes the last batch;
              - in training with mixup or CutMix what `mixing.draw` returns.
            A bad record ends the iteration with an InvalidArgumentError or a DataLossError;
            `find_bad_records` identifies it.

        Raises:
            UserError: the shards are missing or incomplete (`schema.find_shards`), or
                holdout_shards leaves none.
        """
        if self.data_dir == schema.SYNTHETIC_DIR:
            dataset = synthetic.batches(
                self.is_training, self.batch_size, self.image_size, self.num_classes,
                self.num_images, self.seed)
        elif self.is_training:
            dataset = self._training_batches()
        else:
            dataset = self._evaluation_batches()
        if self.is_training and (self.mixup_alpha or self.cutmix_alpha):
            dataset = dataset.map(_without_autograph(self._with_mixing))
        if self.transpose_input:
            dataset = dataset.map(_without_autograph(
                lambda images, labels: (tf.transpose(images, [1, 2, 3, 0]), labels)))
        options = tf.data.Options()
        # Each core already processes an image of its own.
        options.experimental_threading.max_intra_op_parallelism = 1
        options.experimental_deterministic = self.seed is not None or not self.is_training
        # The records are already sharded by rank; a tf.distribute strategy must not do it again.
        options.experimental_distribute.auto_shard = False
        dataset = dataset.with_options(options).prefetch(PREFETCHED_BATCHES)
        return input_waits.timed(dataset, self.on_wait) if self.on_wait else dataset

    def check_first_records(self):
        """Checks the first records of some shards, so that unusable data stops a run at its start.

        The checked shards are spread evenly, because data may be sorted by class: labels out of
        range are then in the first or last shards. The check takes well under a second for small
        datasets and reads 250 MB of ImageNet. Training checks the other records as it reads them.

        Raises:
            UserError: the shards are missing, or one of these records is bad; the message names
                the shard and the record's index.
        """
        if self.data_dir == schema.SYNTHETIC_DIR:
            return
        validation.check_first_records(
            self._shards(), self._format().compression, self._describer())

    def check_lengths(self):
        """Checks the length field of each record of this split.

        A corrupt length crashes TensorFlow's reader, which reads ahead in several shards at a time.

        Raises:
            UserError: the shards are missing, or a record is corrupt; the message names it.
        """
        if self.data_dir == schema.SYNTHETIC_DIR:
            return
        validation.check_lengths(self._shards(), self._format().compression)

    def find_bad_records(self):
        """Reads and decodes all of this process's shards once; takes about as long as an epoch.

        Yields:
            validation.BadRecord, in the order of the shards.

        Raises:
            UserError: the shards are missing.
        """
        if self.data_dir == schema.SYNTHETIC_DIR:
            return
        parse = self._parser()

        def use(record):
            image_bytes, _ = parse(record)
            shape = preprocessing.usable_shape(image_bytes, self.max_image_pixels)
            whole = tf.concat([tf.zeros([2], tf.int32), shape], axis=0)
            return [preprocessing.decode_and_crop(image_bytes, whole)]

        yield from validation.find_bad_records(
            self._own_shards()[0].tolist(), use, self._describer(), self._num_parallel_calls(),
            self._format().compression)

    def class_counter(self):
        """Returns the `ClassCounter` of this split, for the shards of all ranks."""
        return class_counts.ClassCounter(
            self.data_dir, self._shards(), self._format(), self._first_label(),
            self._label_names(), self.num_classes, self.class_map)

    def _describer(self):
        """Returns `validation.describe_record` as a function of the record only."""
        return functools.partial(
            validation.describe_record, form=self._format(), first_label=self._first_label(),
            num_classes=len(self.class_map) or self.num_classes,
            max_image_pixels=self.max_image_pixels, class_names=self._label_names())

    def _format(self):
        return self.shards.record_format(self._shards())

    def _label_names(self):
        """Returns the names that text labels may have, in the order of the records' classes."""
        info = schema.DatasetInfo.load(self.data_dir)
        known = info.names_of(len(self.class_map) or self.num_classes) if info else ()
        return known or self.class_names

    def _first_label(self):
        """Returns the label of class 0 of the model, or of the records if there is a class_map."""
        if self.class_map:
            return self.label_base
        info = schema.DatasetInfo.load(self.data_dir) or schema.IMAGENET
        return self.label_base - int(info.has_background(self.num_classes))

    def _shards(self):
        if not self.holdout_shards:
            split = schema.TRAIN if self.is_training else schema.VALIDATION
            return self.shards.find_shards(self.data_dir, split, self.allow_empty_shards)
        paths = self.shards.find_shards(self.data_dir, schema.TRAIN, self.allow_empty_shards)
        if not 0 < self.holdout_shards < len(paths):
            raise UserError(f'--holdout_shards={self.holdout_shards}: not possible with '
                            f'{len(paths)} training shards in {self.data_dir}; it must be from 1 '
                            f'to {len(paths) - 1}.')
        if self.is_training:
            return paths[self.holdout_shards:]
        return paths[:self.holdout_shards]

    def _own_shards(self):
        """Returns the parts of shards that this process reads, see `reader.shard`."""
        if self.is_training:
            return reader.shard(self._shards(), self.rank, self.world_size)
        return reader.shard(self._shards(), rank=0, world_size=1)

    def mean_record_bytes(self):
        """Returns the mean size of the first records that this process reads; float, bytes."""
        return reader.mean_record_bytes(self._own_shards()[0], self._format().compression)

    def shard_bytes(self):
        """Returns the total size of the records that this process reads; int, bytes."""
        paths, num_parts, _ = self._own_shards()
        return int(sum(tf.io.gfile.stat(path).length / count
                       for path, count in zip(paths, num_parts)))

    def records(self):
        """Reads the serialized records: shuffled and endless in training, once in evaluation.

        Returns:
            tf.data.Dataset of string scalars.
        """
        parts, compression = self._own_shards(), self._format().compression
        record_bytes = reader.mean_record_bytes(parts[0], compression)
        read = functools.partial(
            reader.read, skipped=self.skipped, compression=compression,
            ahead_records=int(self.read_ahead_mb * 1e6 / record_bytes))
        files = tf.data.Dataset.from_tensor_slices(parts)
        if not self.is_training:
            return read(files)
        file_seed, record_seed, *_ = self._seeds()
        records = read(files.shuffle(len(parts[0]), seed=file_seed))
        num_shuffled = max(1, min(SHUFFLED_RECORDS, int(SHUFFLED_MB * 1e6 / record_bytes)))
        if self.use_cache:
            records, num_shuffled = records.cache(), SHUFFLED_CACHED_RECORDS
        if not self.class_rates:
            return records.shuffle(num_shuffled, seed=record_seed).repeat()
        # Shuffling comes after resampling to separate the copies of a record.
        records = resampling.resampled(records, self._parser(), self.class_rates, self.start_epoch)
        return records.shuffle(num_shuffled, seed=record_seed)

    def _training_batches(self):
        _, _, crop_seed, image_seed, *_ = self._seeds()
        num_parallel_calls = self._num_parallel_calls()
        records = self.records()
        parse = self._parser()

        @_without_autograph
        def draw(record):
            image_bytes, label = parse(record)
            crop_window = preprocessing.random_crop_window(
                preprocessing.usable_shape(image_bytes, self.max_image_pixels), self.image_size,
                seed=crop_seed, min_area=self.min_crop_area)
            seed = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64, seed=image_seed)
            return image_bytes, label, crop_window, seed

        @_without_autograph
        def distort(image_bytes, label, crop_window, seed):
            image = preprocessing.preprocess_for_train(
                image_bytes, self.image_size, crop_window=crop_window, seed=seed,
                resize_method=self.resize_method, random_flip=self.random_flip,
                vertical_flip=self.vertical_flip, augment=self.augment,
                distortions=self.distortions)
            return image, {'label': label}

        if self.seed is None:
            examples = records.map(_without_autograph(lambda record: distort(*draw(record))),
                                   num_parallel_calls)
        else:
            # Parallel calls would draw in random order. Drawing serially is cheap, because it
            # reads only the header of each image.
            examples = records.map(draw).map(distort, num_parallel_calls)
        return examples.batch(self.batch_size, drop_remainder=True)

    def _with_mixing(self, images, labels):
        _, height, width, _ = images.shape.as_list()
        drawn = mixing.draw(self.mixup_alpha, self.cutmix_alpha, self.batch_size, (height, width),
                            self._seeds()[4:])
        return images, {**labels, **drawn}

    def _evaluation_batches(self):
        parse = self._parser()

        @_without_autograph
        def preprocess(record):
            image_bytes, label = parse(record)
            image = preprocessing.preprocess_for_eval(
                image_bytes, self.image_size, resize_method=self.resize_method, is_strict=True,
                max_pixels=self.max_image_pixels)
            return image, {'label': label, 'weight': tf.constant(1.0)}

        records = self.records()
        if self.num_images:
            records = records.take(self.num_images)
        examples = records.map(preprocess, num_parallel_calls=self._num_parallel_calls())
        # batch_size - 1 padding examples complete the last batch and can never form their own.
        padding = tf.data.Dataset.from_tensors((tf.zeros([*ImageSize.of(self.image_size), 3]), {
            'label': tf.constant(0), 'weight': tf.constant(0.0)})).repeat(self.batch_size - 1)
        return examples.concatenate(padding).batch(self.batch_size, drop_remainder=True)

    def _seeds(self):
        """Returns the seeds of file order, record order, crops, images and `mixing.draw`."""
        # TensorFlow's default would repeat the first records after each restart, because the graph
        # seed of an Estimator is 1.
        random = np.random.RandomState(
            None if self.seed is None else [self.seed, self.rank, self.start_step])
        return [int(seed) for seed in random.randint(1, 2 ** 31, size=4 + mixing.NUM_SEEDS)]

    def _num_parallel_calls(self):
        return self.num_parallel_calls or len(os.sched_getaffinity(0))

    def _parser(self):
        """Returns a function from a serialized record to (image bytes, class), the latter int32."""
        first_label, num_classes = self._first_label(), len(self.class_map) or self.num_classes
        form, names = self._format(), self._label_names()

        def parse(record):
            image_bytes, class_index = form.parse_tensor(record, first_label, names)
            is_in_range = preprocessing.check(
                (class_index >= 0) & (class_index < num_classes), 'A label is out of range.')
            with tf.control_dependencies([is_in_range]):
                if self.class_map:
                    class_index = tf.gather(tf.constant(self.class_map, tf.int64), class_index)
                return image_bytes, tf.cast(class_index, tf.int32)

        return parse


def serving_input(image_bytes, image_size, resize_method, max_pixels=None):
    """Decodes, crops and resizes the images of a serving request, as evaluation does.

    Args:
        image_bytes: string [N], JPEG or PNG files.
        image_size: `ImageSize` of the result, or int for a square.
        resize_method: str, one of `preprocessing.RESIZE_METHODS`.
        max_pixels: None or int, an image with more pixels is an error.

    Returns:
        float32 [N, height, width, 3], raw RGB in about [0, 255]. In a session, a file in another
        format raises an InvalidArgumentError that names its index.
    """
    signatures = (image_formats.JPEG_SIGNATURE, image_formats.PNG_SIGNATURE)
    is_image = tf.reduce_any([tf.equal(tf.strings.substr(image_bytes, 0, len(signature)), signature)
                              for signature in signatures], axis=0)
    # Index of the first file in another format. argmin would fail on an empty batch.
    index = tf.reduce_sum(tf.cumprod(tf.cast(is_image, tf.int32)))
    fault = tf.strings.join([
        'image ', tf.as_string(index),
        ' of the batch, counted from 0: neither a JPEG nor a PNG file; convert it.'])
    with tf.control_dependencies([preprocessing.check(tf.reduce_all(is_image), fault)]):
        image_bytes = tf.identity(image_bytes)
    return tf.map_fn(
        lambda encoded: preprocessing.preprocess_for_eval(
            encoded, image_size, resize_method=resize_method, max_pixels=max_pixels),
        image_bytes, dtype=tf.float32, back_prop=False)
