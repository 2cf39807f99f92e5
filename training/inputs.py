"""The input pipelines of a run, and the bad records that they skip."""
import dataclasses
from typing import Tuple

from absl import logging
import tensorflow.compat.v1 as tf

import autoaugment
from common import machine
from common import random_ops
from common.errors import UserError
from common.quantities import bytes_text
from config import run_settings
import imagenet_input
from tfrecords import schema
from tfrecords import validation


def make_input(config, is_training, rank=0, world_size=1, ranks_on_host=1):
    """Returns the `ImageNetInput` of one process, for training or for evaluation."""
    data = config.data
    # The other ranks wait while one evaluates, so evaluation may use all cores.
    num_cores = machine.cores_per_rank(ranks_on_host if is_training else 1)
    return imagenet_input.ImageNetInput(
        data_dir=data.data_dir,
        shards=data.layout,
        is_training=is_training,
        image_size=config.image_size,
        batch_size=config.device_batch_size if is_training else data.eval_batch_size,
        num_classes=config.model.num_label_classes,
        label_base=data.label_base,
        class_map=config.class_map,
        class_names=config.class_names,
        resize_method=config.builder.resize_method,
        min_crop_area=data.min_crop_area,
        random_flip=data.random_flip,
        vertical_flip=data.vertical_flip,
        augment=autoaugment.augmentation(
            data.augment_name, data.randaug_num_layers, data.randaug_magnitude,
            data.augment_scale),
        distortions=random_ops.chosen(data.color_jitter, data.random_erasing_prob),
        max_image_pixels=data.max_image_pixels,
        mixup_alpha=data.mixup_alpha,
        cutmix_alpha=data.cutmix_alpha,
        holdout_shards=data.holdout_shards,
        num_images=data.num_eval_images,
        use_cache=data.use_cache,
        num_parallel_calls=data.num_parallel_calls or num_cores,
        read_ahead_mb=data.read_ahead_mb,
        transpose_input=data.transpose_input,
        seed=data.random_seed,
        allow_empty_shards=data.max_bad_records > 0,
        rank=rank,
        world_size=world_size)


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """The input pipelines of a run.

    Attributes:
      train, evaluation: `ImageNetInput`s that skip the bad records.
      scanned: the inputs, one or both, that this rank reads.
      bad_records: tuple of the `validation.BadRecord`s that are skipped.
    """
    train: imagenet_input.ImageNetInput
    evaluation: imagenet_input.ImageNetInput
    scanned: Tuple[imagenet_input.ImageNetInput, ...]
    bad_records: Tuple[validation.BadRecord, ...]

    def bad_record_behind(self, error):
        """Returns the bad record that may have caused an error, or None.

        Reads all records, which takes about as long as an epoch, unless the type of `error` rules a
        bad record out.
        """
        if not isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError)):
            return None
        logging.info('Looking for the record that stopped the run.')
        return next((record for record in _bad_records(self.scanned)
                     if record not in self.bad_records), None)


def prepare(config, runtime):
    """Checks the data of a run and returns its `RunInputs`.

    With --max_bad_records, all records are read once and bad ones are skipped later. Without it,
    only the first records of some shards are read; a bad record elsewhere stops the run when it is
    reached.

    Raises:
      UserError: the data cannot be used, or it has more than --max_bad_records bad records.
    """
    train, evaluation = (make_input(config, is_training, runtime.rank, runtime.world_size,
                                    runtime.ranks_on_host) for is_training in (True, False))
    used = {run_settings.TRAIN: (train,), run_settings.EVAL: (evaluation,),
            run_settings.TRAIN_AND_EVAL: (train, evaluation),
            run_settings.LR_RANGE: (train,)}[config.run.mode]
    # Only rank 0 evaluates.
    scanned = tuple(each for each in used if each.is_training or not runtime.rank)
    bad_records = ()
    if config.data.max_bad_records:
        bad_records = _allowed_bad_records(scanned, config.data.max_bad_records)
    else:
        for each in used:
            each.check_first_records()
    if config.trains and config.data.use_cache and config.data.data_dir != schema.SYNTHETIC_DIR:
        _log_cache(train.shard_bytes(), runtime.ranks_on_host, machine.free_memory_bytes())
    skipped = validation.by_shard(bad_records)
    return RunInputs(dataclasses.replace(train, skipped=skipped),
                     dataclasses.replace(evaluation, skipped=skipped), scanned, bad_records)


def _log_cache(rank_bytes, ranks_on_host, free_bytes):
    """Logs how much memory the cache will take; warns if less is free.

    Args:
      rank_bytes: size of the shards that a rank reads.
      ranks_on_host: number of ranks on this machine.
      free_bytes: free memory, or None if unknown.
    """
    host_bytes = rank_bytes * ranks_on_host
    share = f' ({bytes_text(rank_bytes)} per rank)' * (ranks_on_host > 1)
    free = '' if free_bytes is None else f'; {bytes_text(free_bytes)} are free'
    text = (f'--use_cache: the training shards will take {bytes_text(host_bytes)} of the memory '
            f'of this machine{share}{free}')
    if free_bytes is not None and host_bytes > free_bytes:
        logging.warning('%s. The run will be killed when memory runs out; omit the flag, or store '
                        'smaller images (dataset.create --max_short_side).', text)
    else:
        logging.info('%s.', text)


def num_evaluation_images(config):
    """Returns the number of images of an evaluation, or None if it is not known in advance."""
    data, known = config.data, None
    if data.data_dir == schema.SYNTHETIC_DIR:
        known = schema.SYNTHETIC
    elif not data.holdout_shards:
        known = schema.DatasetInfo.load(data.data_dir)
    counts = known and known.num_images[schema.VALIDATION], data.num_eval_images
    return min(filter(None, counts), default=None)


def _bad_records(inputs):
    for each in inputs:
        yield from each.find_bad_records()


def _allowed_bad_records(inputs, limit):
    logging.info('--max_bad_records=%d: reading all records once to find bad ones.', limit)
    found = []
    for record in _bad_records(inputs):
        logging.warning('Bad record in %s', record)
        found.append(record)
        if len(found) > limit:
            raise UserError(f'--max_bad_records={limit}: more than {limit} bad records; repair the '
                            f'data or raise the limit. The last one: {record}')
    return tuple(found)
