"""Whether a run can begin, or go on, in its model_dir; the folder is then locked and repaired."""
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
    """Checks what is in model_dir, or in rank 0's, against the configuration; changes nothing.

    Raises:
      UserError: a file there is corrupt, or of another model, optimizer or moving average; or
        there is nothing to evaluate or to freeze.
    """
    model_dir = runtime.leader_dir
    if config.run.mode == run_settings.LR_RANGE and runtime.world_size > 1:
        raise UserError(f'--mode={run_settings.LR_RANGE}: there are {runtime.world_size} ranks; '
                        'start one of them alone. Its suggestion holds for all of them, since '
                        '--base_learning_rate is scaled.')
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
        raise UserError(f'{model_dir} holds a model with '
                        f'{_difference(earlier.model, config.model)}; use the same flags or '
                        'another --model_dir.')
    if config.run.mode == run_settings.EVAL:
        if config.run.eval_once and not checkpoint:
            raise UserError(f'{model_dir} holds no checkpoint to evaluate; check --model_dir.')
        return
    _check_start(config, checkpoint)
    if checkpoint:
        _check_resumed_state(config, earlier, checkpoint)


def _check_start(config, checkpoint):
    """Checks --init_checkpoint, and that --freeze has weights to keep."""
    run = config.run
    if config.optimization.freeze and not checkpoint and not run.init_checkpoint:
        raise UserError('--freeze without --init_checkpoint would keep random weights; name the '
                        'checkpoint to start from.')
    if run.init_checkpoint and checkpoint:
        logging.info('%s has a checkpoint: --init_checkpoint is not used.', run.model_dir)
    elif run.init_checkpoint:
        store.verify(store.find(run.init_checkpoint, 'init_checkpoint'))


def _check_resumed_state(config, earlier, checkpoint):
    """Refuses to go on with another state than the checkpoint holds."""
    model_dir = os.path.dirname(checkpoint)
    if not _has_training_state(checkpoint):
        raise UserError(f'{checkpoint} holds weights, but no state of a training to go on with; '
                        f'start a new --model_dir with --init_checkpoint={checkpoint}.')
    decay = config.optimization.moving_average_decay
    for name in ('optimizer', 'freeze', 'moving_average_decay') if earlier else ():
        before, now = getattr(earlier.optimization, name), getattr(config.optimization, name)
        # A moving average may change its decay; it may not appear or disappear.
        is_same_average = name == 'moving_average_decay' and bool(before) == bool(now)
        if before != now and not is_same_average:
            raise UserError(f'{model_dir} was trained with --{name}={before} (now {now}), whose '
                            'state it holds; use the same, or start a new --model_dir with '
                            f'--init_checkpoint={model_dir}.')
    if decay and not restore.has_ema(checkpoint):
        raise UserError(f'{checkpoint} holds no moving averages for --moving_average_decay={decay} '
                        'to go on with; use 0, or start a new --model_dir with '
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
    """Makes, locks and repairs model_dir for a with block; gives it the `Config` of the run.

    It has the run's earlier segments; where settings have changed, a table says which. An
    evaluation job beside a live run must not lock or repair the run's folder.

    Raises:
      UserError: the folder cannot be made, is in use, or holds no intact checkpoint.
    """
    model_dir = config.run.model_dir
    try:
        tf.gfile.MakeDirs(model_dir)
    except tf.errors.OpError as error:
        raise UserError(f'--model_dir={model_dir} cannot be made ({error.message}); choose another '
                        'folder.') from error
    if config.run.mode == run_settings.EVAL:
        yield config
    elif runtime.rank and model_dir == runtime.leader_dir:
        repair.wait_for_repair(model_dir)
        yield continued(config, runtime)
    else:
        with held(model_dir):
            repair.repair(model_dir)
            if model_dir != runtime.leader_dir:
                repair.sync_from_rank_0(runtime.leader_dir, model_dir)
            # The repair may have gone back to an earlier step.
            config = continued(config, runtime)
            if runtime.rank == 0:
                _tell_changes(config)
                config.save()
            yield config


@contextlib.contextmanager
def undone_on_full_disk(model_dir):
    """Removes the event files of a with block that ends on a full disk with nothing achieved.

    Each holds the whole graph: start after start, they would take the room that was made.
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
    """What the next start does not repeat."""
    evaluations = [event for event in event_log.read(model_dir) if event['event'] == 'eval']
    return store.latest(model_dir), len(evaluations)


def continued(config, runtime):
    """Returns the configuration with the segments of the run that it goes on with, or evaluates."""
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
    logging.info('Step %d goes on with other settings:\n%s', step,
                 text_tables.to_text(text_tables.Findings({}, [table], [])))
