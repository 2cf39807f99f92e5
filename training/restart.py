"""Checks that a run can start or resume in its model_dir, then locks and repairs it."""
import contextlib
import os

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import repair
from checkpoints import restore
from checkpoints import store
from checkpoints.best import best_evaluation
from common import text_tables
from common.errors import DiskFullError
from common.errors import UserError
from common.files import described
from common.files import held
from common.paths import check_no_link
from common.paths import check_output_folder
from config import run_config
from config import run_settings
from export import saved_model
from run_log import class_metrics
from run_log import event_log
from training import class_balance
from training import summaries
from training.evaluation import label_of


def check_model_dir(config, runtime):
    """Checks rank 0's model_dir against the configuration; changes nothing.

    Raises:
      UserError: a file there is corrupt or contradicts the configuration (model, optimizer, moving
        average), there is no checkpoint to evaluate, or --freeze has no weights to keep.
    """
    model_dir = runtime.leader_dir
    if config.run.mode == run_settings.LR_RANGE and runtime.world_size > 1:
        raise UserError(f'--mode={run_settings.LR_RANGE}: there are {runtime.world_size} ranks; '
                        'start a single one. The suggested --base_learning_rate is valid for any '
                        'number of ranks, because it is scaled by the global batch size.')
    folders = [class_metrics.evaluation_folder(model_dir, label_of(config, weights))
               for weights in (restore.RAW, restore.EMA)]
    for name in (store.ARCHIVE_DIR, repair.DAMAGED_DIR):
        folders.append(os.path.join(model_dir, name))
    for folder in folders:
        check_no_link(folder)
        check_output_folder(folder, '')
    check_no_link(os.path.join(model_dir, event_log.RESULTS_FILE))
    if config.run.export_dir and not runtime.rank:
        saved_model.check_publishable(config.run.export_dir, config.total_steps)
    event_log.read(model_dir)
    best_evaluation(model_dir)
    class_balance.read(os.path.join(model_dir, class_balance.COUNTS_FILE))
    earlier, checkpoint = run_config.load(model_dir), store.latest(model_dir)
    if checkpoint:
        restore.check_model(checkpoint, config.model.model_name, config.model.num_label_classes)
    if checkpoint and earlier and earlier.model != config.model:
        raise UserError(f'{model_dir}: contains a model with '
                        f'{_difference(earlier.model, config.model)}; use the same flags, or '
                        'choose another --model_dir.')
    if config.run.mode == run_settings.EVAL:
        if config.run.eval_once and not checkpoint:
            raise UserError(f'{model_dir}: contains no checkpoint to evaluate; check --model_dir.')
        return
    _check_start(config, checkpoint)
    if checkpoint:
        _check_resumed_state(config, earlier, checkpoint)


def _check_start(config, checkpoint):
    """Raises UserError if --init_checkpoint is corrupt, or --freeze has no weights to keep."""
    run = config.run
    if config.optimization.freeze and not checkpoint and not run.init_checkpoint:
        raise UserError('--freeze: random weights would be frozen without --init_checkpoint; name '
                        'the checkpoint to start from.')
    if run.init_checkpoint and checkpoint:
        logging.info('--init_checkpoint is ignored: %s already contains a checkpoint.',
                     run.model_dir)
    elif run.init_checkpoint:
        store.verify(store.find(run.init_checkpoint, 'init_checkpoint'))


def _check_resumed_state(config, earlier, checkpoint):
    """Raises UserError if the checkpoint lacks state that the configuration needs to resume."""
    model_dir = os.path.dirname(checkpoint)
    if not _has_training_state(checkpoint):
        raise UserError(f'{checkpoint}: contains weights but no training state to resume from; '
                        f'start a new --model_dir with --init_checkpoint={checkpoint}.')
    decay = config.optimization.moving_average_decay
    for name in ('optimizer', 'freeze', 'moving_average_decay') if earlier else ():
        before, now = getattr(earlier.optimization, name), getattr(config.optimization, name)
        # The decay of a moving average may change, but the average may not appear or disappear.
        is_same_average = name == 'moving_average_decay' and bool(before) == bool(now)
        if before != now and not is_same_average:
            raise UserError(f'{model_dir}: was trained with --{name}={before} (now {now}), and a '
                            f'resumed run cannot change it; use --{name}={before}, or start a new '
                            f'--model_dir with --init_checkpoint={model_dir}.')
    if decay and not restore.has_ema(checkpoint):
        raise UserError(f'{checkpoint}: contains no moving averages, which '
                        f'--moving_average_decay={decay} needs to resume; use '
                        '--moving_average_decay=0, or start a new --model_dir with '
                        f'--init_checkpoint={model_dir}.')


def _has_training_state(checkpoint):
    return (restore.RAW in restore.held_weights(checkpoint)
            and tf.GraphKeys.GLOBAL_STEP in store.shapes(checkpoint))


def _difference(earlier, now):
    return ' and '.join(
        f'--{name}={getattr(earlier, name)} (now {getattr(now, name)})'
        for name in vars(earlier) if getattr(earlier, name) != getattr(now, name))


@contextlib.contextmanager
def prepared_model_dir(config, runtime):
    """Creates, locks and repairs model_dir for a with block; yields the `Config` of the run.

    The `Config` includes the run's earlier segments. Settings that changed are logged as a table.

    Raises:
      UserError: the directory cannot be created, is in use, or contains only corrupt checkpoints.
    """
    model_dir = config.run.model_dir
    try:
        tf.gfile.MakeDirs(model_dir)
    except tf.errors.OpError as error:
        raise UserError(f'--model_dir={model_dir}: cannot be created ({error.message}); choose '
                        'another directory.') from error
    if config.run.mode == run_settings.EVAL:
        # An evaluation job beside a live run must not lock or repair the run's directory.
        yield config
    elif runtime.rank and model_dir == runtime.leader_dir:
        repair.wait_for_repair(model_dir)
        yield continued(config, runtime)
    else:
        with held(model_dir):
            repair.repair(model_dir)
            if model_dir != runtime.leader_dir:
                repair.sync_from_rank_0(runtime.leader_dir, model_dir)
            # The repair may have rolled back to an earlier step.
            config = continued(config, runtime)
            if runtime.rank == 0:
                _tell_changes(config)
                config.save()
            yield config


@contextlib.contextmanager
def undone_on_full_disk(model_dir):
    """Removes the event files written in a with block if a full disk ends it without progress.

    Each event file contains the whole graph. Repeated starts would fill the disk again.
    """
    before = _achieved(model_dir)
    try:
        yield
    except (UserError, tf.errors.OpError, OSError) as error:
        is_full = isinstance(described(error) or error, DiskFullError)
        if is_full and _achieved(model_dir) == before:
            summaries.remove_event_files()
        raise


def _achieved(model_dir):
    """Returns the work that the next start does not repeat: (checkpoint, num_evaluations)."""
    evaluations = [event for event in event_log.read(model_dir) if event['event'] == 'eval']
    return store.latest(model_dir), len(evaluations)


def continued(config, runtime):
    """Returns the configuration with the earlier segments of the run that it resumes.

    The configuration of an evaluation job is returned as it is.
    """
    if config.run.mode == run_settings.EVAL:
        return config
    step = _step(config)
    return config.continued(run_config.load(runtime.leader_dir) if step else None, step)


def _step(config):
    return store.step_of(store.latest(config.run.model_dir))


def _tell_changes(config):
    step = _step(config)
    changes = config.changes_at(step)
    if not changes:
        return
    records = [{'setting': f'--{name}', 'was': str(before), 'now': str(now)}
               for name, (before, now) in changes.items()]
    table = text_tables.Table(records, [
        text_tables.Column(key, lambda record, key=key: record[key], is_text=True)
        for key in ('setting', 'was', 'now')])
    logging.info('Settings changed at step %d:\n%s', step,
                 text_tables.to_text(text_tables.Findings({}, [table], [])))
