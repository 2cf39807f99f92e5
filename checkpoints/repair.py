"""What a kill or a full disk has left of a model_dir, put right before training goes on."""
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
    """Makes the newest intact checkpoint the one that TensorFlow resumes from.

    Damaged ones are moved to model_dir/damaged. What a kill has left of files that were not
    finished is removed. For the process that trains in `model_dir` alone.

    Raises:
      UserError: there are checkpoints, and none of them is intact.
    """
    store.remove_unfinished(model_dir)
    archive, best = os.path.join(model_dir, store.ARCHIVE_DIR), best_evaluation(model_dir)
    if best and store.is_complete(os.path.join(archive, best['checkpoint'])):
        # A kill may have come between the two files. The rest is left to the next best: somebody
        # may be evaluating, and copying, just now.
        store.name_in_state(archive, [best['checkpoint']])
    candidates, checkpoint = store.candidates(model_dir), store.latest_intact(model_dir)
    if candidates and not checkpoint:
        raise UserError(f'{candidates[0]} is damaged, and there is none before it; put a copy in '
                        f'its place, or remove what is in {model_dir} to start anew.')
    if checkpoint and (_later(checkpoint) or [checkpoint] != store.listed(model_dir)[:1]):
        roll_back_to(checkpoint)


def roll_back_to(checkpoint):
    """Makes `checkpoint` the one its folder resumes from; later ones go to the folder `damaged`."""
    model_dir, later = os.path.dirname(checkpoint), _later(checkpoint)
    kept = [path for path in store.candidates(model_dir) if path not in later]
    damaged_dir = os.path.join(model_dir, DAMAGED_DIR)
    for path in [path for each in later for path in store.files_of(each)]:
        tf.gfile.MakeDirs(damaged_dir)
        tf.gfile.Rename(path, os.path.join(damaged_dir, os.path.basename(path)), overwrite=True)
    store.name_in_state(model_dir, [os.path.basename(path) for path in reversed(kept)])


def _later(checkpoint):
    """The checkpoints of the same folder that training must not take up after `checkpoint`.

    One that no file names, of a later step, was written and never checked: a kill came in between.
    """
    model_dir = os.path.dirname(checkpoint)
    candidates = store.candidates(model_dir)
    # The folder may have been moved since.
    listed = {os.path.basename(path) for path in store.listed(model_dir)}
    return [path for index, path in enumerate(candidates) if index < candidates.index(checkpoint)
            or (listed and os.path.basename(path) not in listed
                and store.step_in_name(path) > store.step_in_name(checkpoint))]


def previous_intact(checkpoint):
    """Path prefix of the newest intact checkpoint of the same folder before this, or None."""
    candidates = store.candidates(os.path.dirname(checkpoint))
    earlier = candidates[candidates.index(checkpoint) + 1:]
    return next(filter(store.is_intact, earlier), None)


def wait_for_repair(model_dir):
    """Waits, in a rank that shares `model_dir` with rank 0, until that has done `repair`."""
    deadline, checkpoint = time.monotonic() + _REPAIR_TIMEOUT_SECS, store.latest_intact(model_dir)
    while (checkpoint and [checkpoint] != store.listed(model_dir)[:1]
           and time.monotonic() < deadline):
        time.sleep(1)


def wait_for_checkpoint(model_dir, step):
    """Waits, in a rank that shares `model_dir` with rank 0, until that has saved `step`.

    Raises:
      UserError: no such checkpoint appears within 30 minutes.
    """
    deadline = time.monotonic() + _SAVE_TIMEOUT_SECS
    while store.step_in_name(store.newest_listed(model_dir)) < step:
        check_still_there(model_dir)
        if time.monotonic() > deadline:
            raise UserError(f'Rank 0 has saved no checkpoint of step {step} in {model_dir}; all '
                            'ranks need to see the same --model_dir.')
        time.sleep(_POLL_SECS)


def sync_from_rank_0(leader_dir, model_dir):
    """Leaves in `model_dir` one checkpoint, the newest of rank 0's folder, or none if it has none.

    Ranks that were stopped at different moments have saved different steps. Each would wait for the
    others at the end, if they went on from there.

    Raises:
      UserError: there is a checkpoint, and nothing to see of rank 0's folder, which on several
        servers may be another disk.
    """
    if not tf.gfile.IsDirectory(leader_dir):
        if store.latest(model_dir):
            raise UserError(f'{model_dir} holds a checkpoint, but {leader_dir}, that of rank 0, '
                            'cannot be seen from here; put --model_dir on storage that all servers '
                            'share, or remove the former to start anew.')
        return
    checkpoint = store.latest_intact(leader_dir)
    if checkpoint or store.latest(model_dir):
        name = checkpoint and os.path.basename(checkpoint)
        if checkpoint:
            store.copy(checkpoint, model_dir, name)
        store.keep_only(model_dir, name)
