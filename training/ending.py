"""What is left to do when a run is over, however it ended: say why, and copy what it leaves."""
import os
import re

from absl import logging
import tensorflow.compat.v1 as tf

from common import object_storage
from common.errors import UserError
from common.files import described
from common.paths import is_inside


def explanation(error, find_bad_record, model_dir):
    """Returns the UserError behind what TensorFlow or the system raised in a run, or None.

    Args:
      error: an exception.
      find_bad_record: function of an error -> the bad record that it comes from, or None.
      model_dir: folder whose checkpoints are restored.
    """
    if not isinstance(error, (tf.errors.OpError, OSError)):
        return None
    refused = described(error)
    if refused:
        return refused
    missing = re.search(r'Key (\S+) not found in checkpoint', str(error))
    if missing:
        return UserError(
            f'The checkpoint in {model_dir} has no {missing.group(1)}: it was trained with another '
            '--loss_scale, --precision_mode, --moving_average_decay or --accelerator; use the '
            f'same, or start a new --model_dir with --init_checkpoint={model_dir}.')
    record = find_bad_record(error)
    if record:
        return UserError(f'{record} --max_bad_records lets a run go on without such records.')
    return None


def copy_results(config, rank):
    """Copies what a run leaves to --obs_dir, if there is one.

    Raises:
      UserError: it cannot be copied.
    """
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
