"""What is left to do when a run is over, however it ended: say why, and copy what it leaves."""
import os
import re

from absl import logging
import tensorflow.compat.v1 as tf

from common import object_storage
from common.errors import UserError
from common.files import described
from common.files import size_text
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


def copy_results(config, rank, leader_dir):
    """Copies what a run leaves to --obs_dir, if there is one, and says what the device left.

    Every rank copies the folders of its own device. Rank 0 copies model_dir without those of the
    other ranks. Checkpoints of other ranks are not copied: they are made anew from rank 0's.

    Args:
      config: `run_config.Config` of this rank.
      rank: of this process.
      leader_dir: the model_dir of rank 0.

    Raises:
      UserError: it cannot be copied.
    """
    obs_dir, folders = config.runtime.obs_dir, set(config.runtime.output_dirs.values())
    own = sorted(path for path in (os.path.join(folder, str(rank)) for folder in folders)
                 if tf.gfile.IsDirectory(path))
    for path in own:
        logging.info('The device left %s in %s.', size_text(path), path)
    if not obs_dir:
        return
    if not rank:
        object_storage.copy_folder(leader_dir, obs_dir, [
            os.path.join(folder, str(other)) for folder in folders
            for other in range(1, config.num_ranks)])
    for path in own:
        if not is_inside(path, leader_dir):
            folder = os.path.basename(os.path.dirname(path))
            object_storage.copy_folder(path, os.path.join(obs_dir, folder, str(rank)))
        elif rank:
            place = os.path.relpath(os.path.realpath(path), os.path.realpath(leader_dir))
            object_storage.copy_folder(path, os.path.join(obs_dir, place))
