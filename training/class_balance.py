"""Balances the classes of a run through loss weights or through sampling rates."""
import dataclasses
import json
import os
import time

from absl import logging

from common import json_files
from common.errors import UserError
from common.files import readable_errors
from common.files import whole_file
from config import class_weights
from config import data_settings
from tfrecords import class_labels
from tfrecords import schema

COUNTS_FILE = 'class_counts.json'
_FIELDS = {'fingerprint': json_files.TEXT, 'class_counts': json_files.ARRAY}
_TIMEOUT_SECS = 3600
_POLL_SECS = 1
_NUM_SHOWN = 3


def apply(config, runtime, train):
    """Returns the config and the training input with --class_weights or --sampling applied.

    Without class balancing, both are returned unchanged and no images are counted.

    Args:
      config: `run_config.Config`.
      runtime: the runtime from `runtime.select`.
      train: the training `ImageNetInput`.

    Returns:
      (config, train).

    Raises:
      UserError: the data cannot be read, no record has a valid label, or rank 0 has not stored the
        class counts within an hour.
    """
    is_weighted = config.optimization.class_weights == class_weights.BALANCED
    is_drawn = config.data.sampling == data_settings.BALANCED
    if not config.trains or not (is_weighted or is_drawn):
        return config, train
    counts = _counts(config, runtime, train.class_counter())
    if not sum(counts):
        raise UserError(f'{config.data.data_dir}: no training record has a valid label; check '
                        '--label_base and --num_label_classes.')
    weights = class_weights.balanced(counts)
    if runtime.rank == 0:
        _log(config.shown_class_names, counts, weights, is_drawn)
    if is_drawn:
        # The loss weights also serve as sampling rates: their mean over the records is 1, so the
        # length of an epoch stays the same.
        return config, dataclasses.replace(train, class_rates=weights)
    return dataclasses.replace(config, class_weights=weights), train


def _counts(config, runtime, counter):
    """Returns a list with the number of training images of each class, over all ranks."""
    data = config.data
    info = schema.DatasetInfo.load(data.data_dir)
    if info and info.class_counts and not (data.holdout_shards or data.train_pattern):
        return counter.of_model(info.class_counts[schema.TRAIN]).tolist()
    path, fingerprint = os.path.join(runtime.leader_dir, COUNTS_FILE), counter.fingerprint()
    counts = read(path, fingerprint)
    if counts is None and runtime.rank == 0:
        logging.info('Counting the training images of each class; the result is stored in %s.',
                     path)
        counts = counter.count().tolist()
        with readable_errors(), whole_file(path) as file:
            json.dump({'fingerprint': fingerprint, 'class_counts': counts}, file)
    deadline = time.monotonic() + _TIMEOUT_SECS
    while counts is None:
        if time.monotonic() > deadline:
            raise UserError(f'{path}: rank 0 has not counted the training images; give all ranks '
                            'access to the same data and to the --model_dir of rank 0.')
        time.sleep(_POLL_SECS)
        counts = read(path, fingerprint)
    return counts


def read(path, fingerprint=''):
    """Returns the class counts in a file, or None if it is missing or describes other data.

    Args:
      path: of the file.
      fingerprint: str that identifies the data.

    Raises:
      UserError: the file is corrupt.
    """
    cure = 'remove the file; the next run recreates it'
    found = json_files.read_if_any(path, cure, _FIELDS)
    if found is None:
        return None
    counts = found['class_counts']
    if not all(map(json_files.is_integer, counts)):
        raise UserError(f'{path}: "class_counts" is not a list of non-negative integers; {cure}.')
    return counts if found['fingerprint'] == fingerprint else None


def _log(names, counts, weights, is_drawn):
    """Logs the images per class before and after balancing; warns about classes without images."""
    def shown(index):
        return f'{counts[index]} ({names[index] if names else f"class {index}"})'

    present = [index for index, count in enumerate(counts) if count]
    fewest, most = (extreme(present, key=counts.__getitem__) for extreme in (min, max))
    effective = f'{sum(counts) / len(present):.6g}'
    span = f'{weights[most]:.4g} to {weights[fewest]:.4g}'
    how = (f'--sampling=balanced draws {effective} per class and epoch, each image {span} times'
           if is_drawn else
           f'--class_weights=balanced weights each class as {effective}, each image as {span}')
    logging.info('%-11s%s to %s images per class; %s', 'Balance', shown(fewest), shown(most), how)
    absent = [str(names[index] if names else index) for index, count in enumerate(counts)
              if not count and not (names and names[index] == class_labels.BACKGROUND)]
    if absent:
        more = ', ...' * (len(absent) > _NUM_SHOWN)
        logging.warning('%d of the %d classes have no training images: %s%s.', len(absent),
                        len(counts), ', '.join(absent[:_NUM_SHOWN]), more)
