"""TFRecord shards -> batches for the model; encoded images -> the model's input when serving.

A pipeline is a value: an `ImageNetInput` holds every choice, `dataset()` builds it.
"""
import dataclasses
import os
import re
from typing import Callable
from typing import Optional

from google.protobuf.message import DecodeError
import numpy as np
import tensorflow.compat.v1 as tf

import autoaugment
from dataset import schema
import preprocessing
from preprocessing import BAD_RECORD
from user_error import UserError

INTERLEAVED_FILES = 16             # open at the same time
READ_BUFFER_BYTES = 1 << 20        # per open file
READ_AHEAD_RECORDS = 8             # per open file
SHUFFLED_RECORDS = 1024            # records are still encoded: about 110 kB each of ImageNet
SHUFFLED_CACHED_RECORDS = 16384    # they are in memory anyway
PREFETCHED_BATCHES = 2
FIRST_RECORDS = 8                  # looked at before a run begins

# Functions of a pipeline are plain graph code; translating them anyway takes 3 s at start-up.
_without_autograph = tf.autograph.experimental.do_not_convert


@dataclasses.dataclass(frozen=True)
class ImageNetInput:
    """The input of one process.

    Attributes:
        data_dir: str, folder or URL of the shards `train-?????-of-?????` and
            `validation-?????-of-?????`.
        is_training: bool. Training is shuffled, distorted and endless; evaluation gives every image
            once, in order.
        image_size: int, pixels of the side of the images.
        batch_size: int, images per batch of this process.
        num_classes: int, classes of the model. One more than the data set has labels (1001 for
            ImageNet) means that class 0 is a background class.
        label_base: int, 0 or 1, the label of the first class in the records.
        resize_method: str, one of `preprocessing.RESIZE_METHODS`.
        min_crop_area: float in (0, 1], the smallest share of an image that a training crop has.
        random_flip: bool, whether half of the training images are mirrored left to right.
        augment: None or callable, see `preprocessing.preprocess_for_train`.
        mixup_alpha: float, of the Beta distribution of mixup's weights; 0 for no mixup.
        holdout_shards: None or int, number of training shards, the first ones, that training leaves
            out and evaluation reads instead of the validation split.
        num_images: None or int, evaluation ends after this many images; None for all of them.
        use_cache: bool, whether to keep the encoded training records in memory.
        num_parallel_calls: None or int, images decoded at the same time; None for one per core.
        transpose_input: bool, whether images are [H, W, C, N] instead of [N, H, W, C].
        seed: None or int from 0 on. With a seed two runs give the same batches; without one no two
            runs do, and images come in the order in which they are ready.
        start_step: int, the training step that the first batch is for. With a seed, a run that goes
            on at another step, after an evaluation or an interruption, is given other batches
            instead of the first ones again.
        rank, num_ranks: int, which of how many processes this is. Training records are dealt among
            them; evaluation reads everything whatever the rank.
    """
    data_dir: str
    is_training: bool
    image_size: int
    batch_size: int
    num_classes: int = schema.IMAGENET.num_classes
    label_base: int = schema.IMAGENET.label_base
    resize_method: str = 'bicubic'
    min_crop_area: float = preprocessing.MIN_RANDOM_CROP_AREA
    random_flip: bool = True
    augment: Optional[Callable] = None
    mixup_alpha: float = 0.0
    holdout_shards: Optional[int] = None
    num_images: Optional[int] = None
    use_cache: bool = False
    num_parallel_calls: Optional[int] = None
    transpose_input: bool = False
    seed: Optional[int] = None
    start_step: int = 0
    rank: int = 0
    num_ranks: int = 1

    @property
    def include_background_label(self):
        """Whether the model has a background class 0 that the data set has not."""
        info = schema.DatasetInfo.load(self.data_dir) or schema.IMAGENET
        return self.num_classes == info.num_classes + 1

    def dataset(self):
        """Builds the pipeline in the current graph.

        Returns:
            tf.data.Dataset of `(images, labels)` with static shapes. `images` is float32
            [batch_size, image_size, image_size, 3], raw RGB in about [0, 255]. `labels` is a dict
            of 'label', int32 [batch_size], the class in 0 .. num_classes - 1, and
              - in evaluation 'weight', float32 [batch_size], 1 for an image and 0 for the padding
                that completes the last batch;
              - in training with mixup 'mixup_lambda', float32 [batch_size] in [0.5, 1], the share
                of the image itself, where the rest is the image at the same place of the batch in
                reverse order.

        Raises:
            UserError: the shards are not there or not complete (`schema.find_shards`), or
                holdout_shards leaves none.

        A record that cannot be used ends the iteration with an InvalidArgumentError, for which
        `bad_record_sentence` has the words.
        """
        dataset = self._training_batches() if self.is_training else self._evaluation_batches()
        if self.transpose_input:
            dataset = dataset.map(_without_autograph(
                lambda images, labels: (tf.transpose(images, [1, 2, 3, 0]), labels)))
        options = tf.data.Options()
        options.experimental_deterministic = self.seed is not None or not self.is_training
        # The records are dealt among the ranks already; a tf.distribute strategy is not to do it
        # again.
        options.experimental_distribute.auto_shard = False
        return dataset.with_options(options).prefetch(PREFETCHED_BATCHES)

    def check_first_records(self):
        """Reads the first few records, so that data of the wrong kind is told before a run begins.

        In plain Python, without a session: well under a second.

        Raises:
            UserError: the shards are not there, or one of the first records is truncated, corrupt,
                no tf.train.Example with one image and one label, or has a label out of range.
                Names the shard and the record's index in it.
        """
        path = self._shards()[0]
        records = _iterate_records(path)
        for index in range(FIRST_RECORDS):
            try:
                record = next(records)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                raise UserError(f'{path}: record {index} cannot be read ({error.message}); is this '
                                'an uncompressed TFRecord file, copied whole?') from error
            fault = self._fault(record)
            if fault:
                raise UserError(f'{path}: record {index} {fault}')

    def _fault(self, record):
        """What is wrong with a serialised record, as the rest of a sentence; None for nothing."""
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            return 'is no tf.train.Example; write the shards as ImageNet TFRecords are written.'
        images = features[schema.IMAGE_ENCODED].bytes_list.value
        labels = features[schema.CLASS_LABEL].int64_list.value
        for key, values in ((schema.IMAGE_ENCODED, images), (schema.CLASS_LABEL, labels)):
            if len(values) != 1:
                return (f'has {len(values)} values of "{key}" where one is needed; write the '
                        'shards as ImageNet TFRecords are written.')
        if not images[0].startswith((preprocessing.JPEG_SIGNATURE, preprocessing.PNG_SIGNATURE)):
            return 'holds an image that is neither a JPEG nor a PNG file; convert it.'
        first_label = self._first_label()
        if not first_label <= labels[0] < first_label + self.num_classes:
            return f'has label {labels[0]}{self._out_of_range(first_label)}'
        return None

    def _first_label(self):
        """The label of class 0."""
        return self.label_base - int(self.include_background_label)

    def _out_of_range(self, first_label):
        """The sentence about a label that is out of range, from after the label."""
        return (f', outside {first_label}..{first_label + self.num_classes - 1}; check '
                '--label_base and --num_label_classes.')

    def _shards(self):
        if not self.holdout_shards:
            split = schema.TRAIN if self.is_training else schema.VALIDATION
            return schema.find_shards(self.data_dir, split)
        paths = schema.find_shards(self.data_dir, schema.TRAIN)
        if not 0 < self.holdout_shards < len(paths):
            raise UserError(f'--holdout_shards={self.holdout_shards} cannot be held out of the '
                            f'{len(paths)} training shards in {self.data_dir}; it must be from 1 '
                            f'to {len(paths) - 1}.')
        if self.is_training:
            return paths[self.holdout_shards:]
        return paths[:self.holdout_shards]

    def _training_batches(self):
        # Every random sequence has a seed of its own. They are never left to TensorFlow: the graph
        # seed of an Estimator is 1 unless told otherwise, and a run that is restarted again and
        # again would see the same first records each time.
        random = np.random.RandomState(
            None if self.seed is None else [self.seed, self.rank, self.start_step])
        file_seed, record_seed, crop_seed, image_seed, *mixup_seeds = (
            int(seed) for seed in random.randint(1, 2 ** 31, size=8))
        num_parallel_calls = self._num_parallel_calls()

        parts = _deal(self._shards(), self.rank, self.num_ranks)
        files = tf.data.Dataset.from_tensor_slices(parts).shuffle(len(parts[0]), seed=file_seed)
        records = _read(files)
        if self.use_cache:
            records = records.cache()
        num_shuffled = SHUFFLED_CACHED_RECORDS if self.use_cache else SHUFFLED_RECORDS
        records = records.shuffle(num_shuffled, seed=record_seed).repeat()

        parse = self._parser()

        @_without_autograph
        def draw(record):
            image_bytes, label = parse(record)
            crop_window = preprocessing.random_crop_window(
                image_bytes, self.image_size, seed=crop_seed, min_area=self.min_crop_area)
            seed = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64, seed=image_seed)
            return image_bytes, label, crop_window, seed

        @_without_autograph
        def distort(image_bytes, label, crop_window, seed):
            image = preprocessing.preprocess_for_train(
                image_bytes, self.image_size, crop_window=crop_window, seed=seed,
                resize_method=self.resize_method, random_flip=self.random_flip,
                augment=self.augment)
            return image, {'label': label}

        # Parallel calls would take the numbers of a random sequence in whichever order they run.
        # Drawing reads no more than the file's header, a small part of the time of decoding.
        is_repeatable = self.seed is not None
        examples = records.map(draw, num_parallel_calls=None if is_repeatable else
                               num_parallel_calls)
        examples = examples.map(distort, num_parallel_calls=num_parallel_calls)
        batches = examples.batch(self.batch_size, drop_remainder=True)
        if self.mixup_alpha > 0:
            batches = batches.map(_without_autograph(lambda images, labels: (images, {
                **labels,
                'mixup_lambda': _mixup_lambda(self.mixup_alpha, self.batch_size, mixup_seeds)})))
        return batches

    def _evaluation_batches(self):
        files = tf.data.Dataset.from_tensor_slices(_deal(self._shards(), rank=0, num_ranks=1))
        parse = self._parser()

        @_without_autograph
        def preprocess(record):
            image_bytes, label = parse(record)
            image = preprocessing.preprocess_for_eval(
                image_bytes, self.image_size, resize_method=self.resize_method)
            return image, {'label': label, 'weight': tf.constant(1.0)}

        records = _read(files)
        if self.num_images:
            records = records.take(self.num_images)
        examples = records.map(preprocess, num_parallel_calls=self._num_parallel_calls())
        # One fewer than a batch completes the last batch and never makes one of its own.
        padding = tf.data.Dataset.from_tensors((
            tf.zeros([self.image_size, self.image_size, 3]),
            {'label': tf.constant(0), 'weight': tf.constant(0.0)})).repeat(self.batch_size - 1)
        return examples.concatenate(padding).batch(self.batch_size, drop_remainder=True)

    def _num_parallel_calls(self):
        return self.num_parallel_calls or len(os.sched_getaffinity(0))

    def _parser(self):
        """The function from a serialised record to its image file and its class.

        Returns:
            callable, string scalar -> (string scalar, int32 scalar in 0 .. num_classes - 1).
        """
        first_label = self._first_label()

        def parse(record):
            features = tf.io.parse_single_example(record, {
                schema.IMAGE_ENCODED: tf.io.FixedLenFeature([], tf.string),
                schema.CLASS_LABEL: tf.io.FixedLenFeature([], tf.int64)})
            label = features[schema.CLASS_LABEL]
            class_index = label - first_label
            is_in_range = (class_index >= 0) & (class_index < self.num_classes)
            sentence = tf.strings.join(['a record has label ', tf.as_string(label),
                                        self._out_of_range(first_label)])
            with tf.control_dependencies([preprocessing.assert_good(is_in_range, sentence)]):
                return features[schema.IMAGE_ENCODED], tf.cast(class_index, tf.int32)

        return parse


def augmentation(name, num_layers, magnitude):
    """The `augment` of an `ImageNetInput` that a name stands for.

    Args:
        name: 'autoaugment' (policy v0), 'randaugment', or None for none.
        num_layers, magnitude: of RandAugment.

    Returns:
        callable `(image, seed) -> image`, or None.
    """
    if name == 'autoaugment':
        return lambda image, seed: autoaugment.distort_image_with_autoaugment(image, 'v0', seed)
    if name == 'randaugment':
        return lambda image, seed: autoaugment.distort_image_with_randaugment(
            image, num_layers, magnitude, seed)
    return None


def serving_input(image_bytes, image_size, resize_method):
    """Decodes, crops and resizes the images of a request, as in evaluation.

    Args:
        image_bytes: string [N], JPEG or PNG files.
        image_size: int, pixels of the side of the result.
        resize_method: str, one of `preprocessing.RESIZE_METHODS`.

    Returns:
        float32 [N, image_size, image_size, 3], raw RGB in about [0, 255]. InvalidArgumentError with
        `BAD_RECORD`, naming the first of them, when the session meets another kind of file.
    """
    signatures = (preprocessing.JPEG_SIGNATURE, preprocessing.PNG_SIGNATURE)
    is_image = tf.reduce_any([tf.equal(tf.strings.substr(image_bytes, 0, len(signature)), signature)
                              for signature in signatures], axis=0)
    first_bad = tf.argmin(tf.cast(is_image, tf.int32), output_type=tf.int32)
    sentence = tf.strings.join(['image ', tf.as_string(first_bad), ' of the batch, counted from 0, '
                                'is neither a JPEG nor a PNG file; convert it.'])
    with tf.control_dependencies([preprocessing.assert_good(tf.reduce_all(is_image), sentence)]):
        image_bytes = tf.identity(image_bytes)
    return tf.map_fn(
        lambda encoded: preprocessing.preprocess_for_eval(
            encoded, image_size, resize_method=resize_method),
        image_bytes, dtype=tf.float32, back_prop=False)


def bad_record_sentence(error):
    """What a user should read of an error that the pipeline raised, or None if it is another kind.

    Args:
        error: tf.errors.OpError.

    Returns:
        str such as 'Bad record: a record has label 11, outside 1..10; check --label_base and
        --num_label_classes.', or None.
    """
    match = re.search(re.escape(BAD_RECORD) + r'.*\.', error.message)
    return match.group() if match else None


def _deal(paths, rank, num_ranks):
    """Deals shards to the ranks: whole files while they go round, the rest of them by record.

    Args:
        paths: list of str.
        rank, num_ranks: int.

    Returns:
        (paths, num_parts, parts): arrays of str, int64, int64. This rank reads record
        parts[i], parts[i] + num_parts[i], parts[i] + 2 * num_parts[i] ... of paths[i].
    """
    num_whole = len(paths) // num_ranks * num_ranks
    dealt = [(path, 1, 0) for path in paths[rank:num_whole:num_ranks]]
    # Each of the rest begins with another rank, for whoever begins may get a record more.
    dealt += [(path, num_ranks, (rank + i) % num_ranks)
              for i, path in enumerate(paths[num_whole:])]
    dealt_paths, num_parts, parts = zip(*dealt)
    return np.array(dealt_paths), np.array(num_parts, np.int64), np.array(parts, np.int64)


def _read(files):
    """Records of a dataset of (path, number of parts, part), several files at a time."""
    # A thread a file by way of prefetch. In TensorFlow 1.15.5 interleave's own num_parallel_calls
    # crashes the process, more often than not, when a session is closed while it reads.
    return files.interleave(
        _without_autograph(lambda path, num_parts, part: tf.data.TFRecordDataset(
            path, buffer_size=READ_BUFFER_BYTES).shard(num_parts, part).prefetch(
                READ_AHEAD_RECORDS)),
        cycle_length=INTERLEAVED_FILES)


def _iterate_records(path):
    verbosity = tf.logging.get_verbosity()
    # It warns that tf.data should be used instead, which cannot be without a session.
    tf.logging.set_verbosity(tf.logging.ERROR)
    try:
        return tf.io.tf_record_iterator(path)
    finally:
        tf.logging.set_verbosity(verbosity)


def _mixup_lambda(alpha, batch_size, seeds):
    """Draws Beta(alpha, alpha) and takes the larger side (Zhang et al., arXiv:1710.09412).

    Beta is G1 / (G1 + G2) of two Gamma(alpha) variables, that is the sigmoid of
    log(G1) - log(G2). Gamma(alpha) itself underflows to 0 at a small alpha; its logarithm does not:
    log Gamma(alpha) ~ log Gamma(alpha + 1) + log(U) / alpha (Marsaglia and Tsang, 2000).

    Args:
        alpha: float, above 0.
        batch_size: int.
        seeds: list of 4 ints.

    Returns:
        float32 [batch_size] in [0.5, 1].
    """
    def log_gamma(gamma_seed, uniform_seed):
        gamma = tf.random.gamma([batch_size], alpha + 1.0, seed=gamma_seed)
        uniform = tf.random.uniform([batch_size], minval=np.finfo(np.float32).tiny,
                                    seed=uniform_seed)
        return tf.log(gamma) + tf.log(uniform) / alpha

    return tf.sigmoid(tf.abs(log_gamma(*seeds[:2]) - log_gamma(*seeds[2:])))
