"""Repairs a model_dir after a kill or a full disk, before training resumes."""
import os
import time

import tensorflow.compat.v1 as tf

from checkpoints import store
from checkpoints.best import best_evaluation
from common.errors import UserError
from common.files import check_still_there

DAMAGED_DIR = 'damaged'
_REPAIR_TIMEOUT_SECS = 600
_SAVE_TIMEOUT_SECS = 1800
_POLL_SECS = 0.2


def repair(model_dir):
    """Makes TensorFlow resume from the newest intact checkpoint.

    Corrupt checkpoints are moved to model_dir/damaged, and unfinished files are removed. Only the
    process that trains in `model_dir` may call this.

    Raises:
      UserError: there are checkpoints, but none of them is intact.
    """
    store.remove_unfinished(model_dir)
    archive, best = os.path.join(model_dir, store.ARCHIVE_DIR), best_evaluation(model_dir)
    if best and store.is_complete(os.path.join(archive, best['checkpoint'])):
        # A kill may have come between writing the two files. The next archive removes old files,
        # because another process may still be reading them.
        store.name_in_state(archive, [best['checkpoint']])
    candidates, checkpoint = store.candidates(model_dir), store.latest_intact(model_dir)
    if candidates and not checkpoint:
        raise UserError(f'{candidates[0]}: corrupt, and no earlier checkpoint exists; restore a '
                        f'copy, or start in an empty --model_dir.')
    if checkpoint and (_later(checkpoint) or [checkpoint] != store.listed(model_dir)[:1]):
        roll_back_to(checkpoint)


def roll_back_to(checkpoint):
    """Makes `checkpoint` the newest of its directory; later ones are moved to `damaged`."""
    model_dir, later = os.path.dirname(checkpoint), _later(checkpoint)
    kept = [path for path in store.candidates(model_dir) if path not in later]
    damaged_dir = os.path.join(model_dir, DAMAGED_DIR)
    for path in [path for each in later for path in store.files_of(each)]:
        tf.gfile.MakeDirs(damaged_dir)
        tf.gfile.Rename(path, os.path.join(damaged_dir, os.path.basename(path)), overwrite=True)
    store.name_in_state(model_dir, [os.path.basename(path) for path in reversed(kept)])


def _later(checkpoint):
    """Returns the checkpoints of the same directory that training must not resume from.

    A later checkpoint that the file `checkpoint` does not list was written but never verified,
    because the process was killed.
    """
    model_dir = os.path.dirname(checkpoint)
    candidates = store.candidates(model_dir)
    # The directory may have been moved since.
    listed = {os.path.basename(path) for path in store.listed(model_dir)}
    return [path for index, path in enumerate(candidates) if index < candidates.index(checkpoint)
            or (listed and os.path.basename(path) not in listed
                and store.step_in_name(path) > store.step_in_name(checkpoint))]


def previous_intact(checkpoint):
    """Returns the path prefix of the newest intact earlier checkpoint, or None."""
    candidates = store.candidates(os.path.dirname(checkpoint))
    earlier = candidates[candidates.index(checkpoint) + 1:]
    return next(filter(store.is_intact, earlier), None)


def wait_for_repair(model_dir):
    """Waits until rank 0, which shares `model_dir` with this rank, has done `repair`."""
    deadline, checkpoint = time.monotonic() + _REPAIR_TIMEOUT_SECS, store.latest_intact(model_dir)
    while (checkpoint and [checkpoint] != store.listed(model_dir)[:1]
           and time.monotonic() < deadline):
        time.sleep(1)


def wait_for_checkpoint(model_dir, step):
    """Waits until rank 0, which shares `model_dir` with this rank, has saved `step`.

    Raises:
      UserError: the checkpoint does not appear within 30 minutes.
    """
    deadline = time.monotonic() + _SAVE_TIMEOUT_SECS
    while store.step_in_name(store.newest_listed(model_dir)) < step:
        check_still_there(model_dir)
        if time.monotonic() > deadline:
            raise UserError(f'{model_dir}: no checkpoint of step {step} from rank 0; put '
                            '--model_dir on storage that all ranks share.')
        time.sleep(_POLL_SECS)


def sync_from_rank_0(leader_dir, model_dir):
    """Replaces the checkpoints in `model_dir` by the newest of rank 0, if it has one.

    Ranks that were stopped at different moments have saved different steps. If each resumed from
    its own, they would wait for each other forever at the end.

    Raises:
      UserError: there is a checkpoint here, but rank 0's directory is not visible, which may be on
        the disk of another server.
    """
    if not tf.gfile.IsDirectory(leader_dir):
        if store.latest(model_dir):
            raise UserError(f'{model_dir}: has a checkpoint, but {leader_dir} of rank 0 is not '
                            'visible from here; put --model_dir on storage that all servers share, '
                            'or remove the directory to start from scratch.')
        return
    checkpoint = store.latest_intact(leader_dir)
    if checkpoint or store.latest(model_dir):
        name = checkpoint and os.path.basename(checkpoint)
        if checkpoint:
            store.copy(checkpoint, model_dir, name)
        store.keep_only(model_dir, name)
