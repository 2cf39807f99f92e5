"""What is left to do when a run is over, however it ended: say why, and copy what it leaves."""
import contextlib
import os
import re

from absl import logging
import tensorflow.compat.v1 as tf

from common import object_storage
from common.errors import UserError
from common.files import described
from common.paths import is_inside


@contextlib.contextmanager
def copied_results(config, rank):
    """Copies what a run leaves to --obs_dir; when it fails, too, and its own error stays."""
    try:
        yield
    except BaseException:
        try:
            _copy_results(config, rank)
        except UserError as error:
            logging.error('%s', error)
        raise
    _copy_results(config, rank)


def _copy_results(config, rank):
    obs_dir, model_dir = config.runtime.obs_dir, config.run.model_dir
    if not obs_dir:
        return
    object_storage.copy_folder(model_dir, obs_dir)
    for folder in config.runtime.output_dirs.values():
        path = os.path.join(folder, str(rank))
        if tf.gfile.IsDirectory(path) and not is_inside(path, model_dir):
            name = os.path.basename(os.path.normpath(folder))
            object_storage.copy_folder(path, os.path.join(obs_dir, name, str(rank)))
    logging.info('Results copied to %s.', obs_dir)


@contextlib.contextmanager
def readable_errors(find_bad_record, model_dir):
    """Turns what TensorFlow raises for a user's mistake into one sentence.

    Args:
      find_bad_record: function of an error -> the bad record that it comes from, or None.
      model_dir: whose checkpoints are restored.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        readable = described(error)
        if readable:
            raise readable from error
        missing = re.search(r'Key (\S+) not found in checkpoint', str(error))
        if missing:
            raise UserError(
                f'The checkpoint in {model_dir} has no {missing.group(1)}: it was trained with '
                'another --loss_scale, --precision_mode, --moving_average_decay or --accelerator; '
                f'use the same, or start a new --model_dir with --init_checkpoint={model_dir}.'
            ) from error
        record = find_bad_record(error)
        if record:
            raise UserError(f'{record} --max_bad_records lets a run go on without such '
                            'records.') from error
        raise
