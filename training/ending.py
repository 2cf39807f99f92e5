"""The end of a run: explains errors, copies results to object storage, prints the final lines."""
import os
import re

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import store
from common import object_storage
from common.errors import UserError
from common.files import described
from common.files import size_text
from common.paths import is_inside
from config import run_settings
from run_log import evaluation_table
from run_log import event_log
from training import lr_range

# Setting of a directory -> name of what the device writes there.
OUTPUT_NAMES = {'dump_dir': 'Dumps', 'profiling_dir': 'Profiles', 'graph_dir': 'Graphs',
                'tune_dir': 'Tuning'}


def explanation(error, find_bad_record, model_dir):
    """Returns a UserError that explains an error of TensorFlow or the system, or None.

    Args:
      error: an exception.
      find_bad_record: function of an error -> the bad record that caused it, or None.
      model_dir: directory whose checkpoints are restored.
    """
    if not isinstance(error, (tf.errors.OpError, OSError)):
        return None
    refused = described(error)
    if refused:
        return refused
    missing = re.search(r'Key (\S+) not found in checkpoint', str(error))
    if missing:
        return UserError(
            f'{model_dir}: the checkpoint has no variable {missing.group(1)}, because it was saved '
            'with another --loss_scale, --precision_mode, --moving_average_decay or --accelerator; '
            f'use the same values, or a new --model_dir with --init_checkpoint={model_dir}.')
    record = find_bad_record(error)
    if record:
        return UserError(f'{record} Use --max_bad_records to skip such records.')
    return None


def copy_results(config, rank, leader_dir):
    """Copies the results of a run to --obs_dir, if given, and logs the output of the device.

    Rank 0 copies its model_dir, without the device output of other ranks; every rank copies that of
    its own device. Checkpoints of other ranks are not copied, as they are synced from rank 0.

    Args:
      config: `run_config.Config` of this rank.
      rank: rank of this process.
      leader_dir: the model_dir of rank 0.

    Raises:
      UserError: a file cannot be copied.
    """
    obs_dir, folders = config.runtime.obs_dir, config.runtime.output_dirs
    own = []
    for setting, folder in folders.items():
        path = os.path.join(folder, str(rank))
        if tf.gfile.IsDirectory(path):
            own.append(path)
            logging.info('%s: %s in %s.', OUTPUT_NAMES[setting], size_text(path), path)
    if not obs_dir:
        return
    if not rank:
        object_storage.copy_folder(leader_dir, obs_dir, [
            *(os.path.join(folder, str(other)) for folder in folders.values()
              for other in range(1, config.num_ranks)),
            *store.unfinished(leader_dir),
            *store.unfinished(os.path.join(leader_dir, store.ARCHIVE_DIR))])
    for path in dict.fromkeys(own):
        if not is_inside(path, leader_dir):
            folder = os.path.basename(os.path.dirname(path))
            object_storage.copy_folder(path, os.path.join(obs_dir, folder, str(rank)))
        elif rank:
            place = os.path.relpath(os.path.realpath(path), os.path.realpath(leader_dir))
            object_storage.copy_folder(path, os.path.join(obs_dir, place))


def print_results(config, checkpoint):
    """Prints the results of a finished run: its evaluation table, or with --quiet one line.

    A run without evaluation logs its last checkpoint; a range test, the suggested learning rate.

    Args:
      config: `run_config.Config` of rank 0.
      checkpoint: path prefix of the newest checkpoint, or None.
    """
    events = event_log.read(config.run.model_dir)
    if config.run.mode == run_settings.LR_RANGE:
        say_last(config, lr_range.sentence(events))
        return
    table = evaluation_table.table(events, config.run.model_dir) if config.evaluates else ''
    if not config.evaluates:
        say_last(config, f'Trained to step {store.step_of(checkpoint)} of {config.total_steps}: '
                         f'{checkpoint}')
    elif not config.run.quiet and table:
        print(table)
    elif table:
        evaluation = [event for event in events if event['event'] == 'eval'][-1]
        print(table.splitlines()[-1] if config.trains else
              f"Step {evaluation['step']}, {evaluation['weights']} weights: top-1 "
              f"{evaluation['top_1']:.4f} on {evaluation['num_images']} images")


def say_last(config, line):
    """Logs the final line of a run, or prints it with --quiet, when only errors are logged."""
    if config.run.quiet:
        print(line)
    else:
        logging.info('%s', line)
