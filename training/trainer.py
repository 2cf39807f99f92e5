"""Executes a run: training, evaluation, or both in turn, from scratch or resumed."""
import contextlib
import dataclasses
import functools
import time
from typing import Any
from typing import Optional

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import repair
from checkpoints import store
from common.errors import UserError
from common.files import check_still_there
from common.files import readable_errors
from config import run_settings
from config.run_config import Config
from export import saved_model
from export import trained_model
from run_log import environment
from run_log import event_log
from runtime import select
from tfrecords import schema
from training import class_balance
from training import early_stopping
from training import ending
from training import header
from training import hooks
from training import inputs
from training import lr_range
from training import nan_guard
from training import preemption
from training import progress
from training import restart
from training import saving
from training import summaries
from training.evaluation import Evaluator
from training.evaluation import kinds_of_weights
from training.input_stall import InputStall
from training.input_stall import find_situation
from training.model_fn import make_params
from training.model_fn import model_fn
from training.time_left import TimeLeft

FINISHED = 'finished'
ALREADY_FINISHED = 'already_finished'
FAILED = 'failed'


@dataclasses.dataclass(frozen=True)
class _Run:
    """The state that all modes share.

    Attributes:
      config: `Config` of this rank.
      runtime: the runtime that `runtime.select` returned.
      stop: `preemption.StopRequest`.
      inputs: `inputs.RunInputs`.
      results_dir: directory of results.jsonl; None on ranks other than 0, which write no results.
      writer, stall, skips: see `hooks.ProgressHook`.
    """
    config: Config
    runtime: Any
    stop: preemption.StopRequest
    inputs: inputs.RunInputs
    results_dir: Optional[str]
    writer: Optional[summaries.SummaryWriter]
    stall: Optional[InputStall]
    skips: Optional[nan_guard.LossScaleSkips]

    @property
    def checkpoint(self):
        """The newest complete checkpoint, or None."""
        return store.latest(self.config.run.model_dir)

    @property
    def step(self):
        """The step from which training would resume."""
        return store.step_of(self.checkpoint)

    def find_early_stop(self):
        """See `early_stopping.find`."""
        return early_stopping.find(self.config, self.runtime.leader_dir, self.step)


def run(config):
    """Executes the run that `config` describes.

    Returns:
      the exit code: 0 if the run finished or reached its deadline, or 128 + the number of the
      signal that stopped it.

    Raises:
      UserError: a mistake that the user can correct.
    """
    deadline = config.deadline(time.time())
    runtime = select(config)
    with preemption.StopRequest(deadline, is_alone=runtime.world_size == 1) as stop:
        with readable_errors():
            _run(runtime.config, runtime, stop)
    return stop.exit_code


def _run(config, runtime, stop):
    # These checks come before reading the data, which may take as long as an epoch.
    restart.check_model_dir(config, runtime)
    config = restart.continued(config, runtime)
    header.log(config, runtime, store.step_of(store.latest(config.run.model_dir)))
    run_inputs = inputs.prepare(config, runtime)
    with restart.prepared_model_dir(config, runtime) as config:
        config, train = class_balance.apply(config, runtime, run_inputs.train)
        run_inputs = dataclasses.replace(run_inputs, train=train)
        this = _make_run(config, runtime, stop, run_inputs)
        try:
            with restart.undone_on_full_disk(config.run.model_dir):
                _record_start(this)
                status = _MODES[config.run.mode](this)
                _record_end(this, status)
        except BaseException as error:
            _finish_failed(this)
            explained = ending.explanation(
                error, this.inputs.bad_record_behind, config.run.model_dir)
            if explained:
                raise explained from error
            raise
        summaries.close_event_files()
        ending.copy_results(config, runtime.rank, runtime.leader_dir)
    if runtime.rank == 0:
        ending.print_results(config, this.checkpoint)
    if this.inputs.bad_records:
        logging.info('%d bad records were skipped.', len(this.inputs.bad_records))


def _make_run(config, runtime, stop, run_inputs):
    # Rank 0 reports for all ranks.
    results_dir = None if runtime.rank else config.run.model_dir
    writer = None
    if results_dir and not config.run.skip_host_call:
        writer = summaries.SummaryWriter(results_dir, config.run.save_summary_steps)
    return _Run(
        config, runtime, stop, run_inputs, results_dir, writer,
        stall=_make_stall(config, runtime, run_inputs) if config.run.log_input_stall else None,
        skips=nan_guard.LossScaleSkips() if runtime.skips_overflows else None)


def _make_stall(config, runtime, run_inputs):
    if runtime.rank or config.data.data_dir == schema.SYNTHETIC_DIR:
        return InputStall()
    return InputStall(functools.partial(
        find_situation, config, runtime.ranks_on_host, run_inputs.train))


# The modes ---------------------------------------------------------------------------------------

def _train(this, evaluator=None):
    """Trains to the last step; evaluates at the end of each round if there is an evaluator.

    After a restart, a checkpoint that ends a round and was never evaluated is evaluated first. With
    several ranks, rank 0 does so after the first step, because ranks that have not started yet wait
    for each other for a shorter time.
    """
    step, total_steps, missed = this.step, this.config.total_steps, None
    is_last, early_stop = step >= total_steps, this.find_early_stop()
    if evaluator and not early_stop and evaluator.is_missing(step):
        missed = this.checkpoint
    if missed and (is_last or this.runtime.world_size == 1):
        evaluator.evaluate(missed)
        missed, early_stop = None, this.find_early_stop()
    is_finished = is_last or bool(early_stop)
    if is_finished:
        logging.info('Training is already finished: %s is at step %d of %d%s.',
                     this.config.run.model_dir, step, total_steps, early_stop)
    elif step:
        logging.info('Resuming from step %d of %d.', step, total_steps)
    status = ALREADY_FINISHED
    if not is_finished:
        status = _train_to_the_end(this, evaluator, missed)
        if evaluator and status == FINISHED:
            evaluator.evaluate(this.checkpoint)
    _export(this, is_repeated=is_finished)
    return status


def _train_and_evaluate(this):
    if this.runtime.rank:
        return _train(this)
    with _make_evaluator(this) as evaluator:
        return _train(this, evaluator)


def _evaluate(this):
    if this.runtime.rank:
        return FINISHED
    with _make_evaluator(this) as evaluator:
        if this.config.run.eval_once:
            evaluator.evaluate(store.find(this.config.run.model_dir, 'model_dir'))
        else:
            evaluator.evaluate_new_checkpoints()
    return FINISHED


def _test_learning_rates(this):
    """Trains while the learning rate rises; a non-finite loss is a normal end of the test."""
    if this.step < this.config.total_steps:
        try:
            _train_to_the_end(this, None, None)
        except nan_guard.NotFiniteError:
            logging.info('The range test ends here: the loss is no longer finite.')
    lr_range.report(this.config)
    return FINISHED


_MODES = {run_settings.TRAIN: _train, run_settings.EVAL: _evaluate,
          run_settings.TRAIN_AND_EVAL: _train_and_evaluate,
          run_settings.LR_RANGE: _test_learning_rates}


# Steps of a run ----------------------------------------------------------------------------------

def _make_evaluator(this):
    return Evaluator(this.config, this.runtime, this.inputs.evaluation, this.stop)


def _train_to_the_end(this, evaluator, missed):
    """Trains to the last step, or until early stopping.

    Args:
      evaluator: `Evaluator` to run at the end of each round, or None.
      missed: checkpoint to evaluate after the first step, or None.

    Returns:
      FINISHED or preemption.EARLY_STOPPED.
    """
    config, runtime = this.config, this.runtime
    is_shown = runtime.rank == 0 and not config.run.quiet
    savers, time_left = [], TimeLeft(config)
    stages = hooks.StagesHook(lambda: this.checkpoint)

    def make_hooks(steps_per_run):
        saver = saving.make_hook(config, runtime, evaluator and evaluate_round,
                                 lambda: time_left.measured(TimeLeft.SAVE))
        savers.append(saver)
        # The saver comes last: a save may remove the checkpoint that is still to be evaluated.
        return [stages, *_make_hooks(this, steps_per_run, saver), progress_hook, *first_step_hooks,
                saver]

    def make_batches():
        stages.begin_building()
        return _training_batches(this)

    def evaluate_round(checkpoint):
        with this.stop.between_steps(), readable_errors(), time_left.measured(TimeLeft.EVALUATION):
            evaluator.evaluate(checkpoint, display)
            if this.find_early_stop():
                this.stop.stop_early()
        return this.stop.is_settled

    first_step_hooks = [hooks.FirstStepHook(lambda: evaluate_round(missed))] if missed else []
    if evaluator:
        evaluator.open()
    with this.stop.at_step_end(), progress.shown(is_shown) as display:
        progress_hook = hooks.ProgressHook(
            config, results_dir=this.results_dir, display=display, writer=this.writer,
            stall=this.stall, skips=this.skips, time_left=time_left)
        try:
            runtime.train(
                model_fn, make_params(config, runtime), make_batches, config.total_steps,
                make_hooks, has_stopped=lambda: this.stop.is_settled)
        finally:
            for saver in savers:
                saver.join()
            progress_hook.write_stop()
    if not runtime.keeps_checkpoints:
        repair.wait_for_checkpoint(config.run.model_dir, progress_hook.step)
    check_still_there(config.run.model_dir)
    return _status_of(this, progress_hook.step or 0)


def _status_of(this, last_step):
    """Returns FINISHED or preemption.EARLY_STOPPED after the last session of a training.

    Raises:
      preemption.Stopped: the training was interrupted.
      UserError: the training ended before its last step for another reason.
    """
    config, step = this.config, this.step
    is_early = this.stop.status == preemption.EARLY_STOPPED
    if step >= config.total_steps or is_early:
        this.stop.end_of_training()
    this.stop.check()
    if step >= config.total_steps:
        return FINISHED
    if is_early:
        logging.info('Training stopped early at step %d of %d%s.', step, config.total_steps,
                     this.find_early_stop())
        return preemption.EARLY_STOPPED
    if config.total_steps <= last_step:
        raise UserError(f'{config.run.model_dir}: the checkpoint of step {config.total_steps} was '
                        'removed or renamed during the run; rerun to resume.')
    this.inputs.train.check_first_records()
    raise UserError(f'{config.data.data_dir}: training stopped at step {step} of '
                    f'{config.total_steps} because the shards were changed during the run; restore '
                    'them and rerun to resume.')


def _training_batches(this):
    return dataclasses.replace(
        this.inputs.train, start_step=this.step, start_epoch=int(this.config.epoch_at(this.step)),
        on_wait=this.stall and this.stall.add).dataset()


def _make_hooks(this, steps_per_run, saver):
    """Returns the hooks that may end a session, in the order in which they are called."""
    config, runtime = this.config, this.runtime
    leader_dir = None if runtime.world_size == 1 else runtime.leader_dir
    # A non-finite value ends the session before another hook reports or saves it.
    return [nan_guard.NanHook(config.run.model_dir, steps_per_run, this.skips, saver.join),
            preemption.StopHook(this.stop, leader_dir, runtime.rank)]


def _export(this, is_repeated):
    """Writes a SavedModel to --export_dir.

    Args:
      is_repeated: whether training was finished already; the SavedModel is then written only if it
        is missing, because an earlier run was killed before it wrote it.
    """
    config = this.config
    if this.runtime.rank or not config.run.export_dir:
        return
    if is_repeated and tf.gfile.Exists(
            saved_model.published_path(config.run.export_dir, this.step)):
        return
    trained = trained_model.of_run(config, this.checkpoint, kinds_of_weights(config)[-1])
    report = saved_model.publish(trained, config.run.export_dir)
    event_log.append(this.results_dir, 'export', step=trained.step, path=report.path)
    logging.info('SavedModel written to %s', report)


# Events of results.jsonl -------------------------------------------------------------------------

def _record_start(this):
    config = this.config
    event_log.append(
        this.results_dir, 'run_start', mode=config.run.mode, model_name=config.model.model_name,
        step=this.step, total_steps=config.total_steps,
        environment=environment.describe(this.runtime.device_name))
    event_log.append(this.results_dir, 'config', class_names=config.class_names,
                     changed_settings=config.changed_settings, **config.settings)
    for record in this.inputs.bad_records:
        event_log.append(this.results_dir, 'bad_record', path=record.path, index=record.index,
                         fault=record.reason)


def _record_end(this, status):
    """Writes the last event of the run; logs how to resume an interrupted run."""
    if this.stop.status not in (None, preemption.EARLY_STOPPED):
        line = (f'Stopped at step {this.step} of {this.config.total_steps} ({status}). The same '
                'command resumes from there.')
        if this.results_dir:
            ending.say_last(this.config, line)
        else:
            logging.info('%s', line)
    skipped = {'skipped_steps': this.skips.total} if this.skips else {}
    event_log.append(this.results_dir, 'run_stop', mode=this.config.run.mode, step=this.step,
                     status=status, bad_records=len(this.inputs.bad_records), **skipped)


def _finish_failed(this):
    """Records and copies the results of a failed run.

    Errors of these steps are suppressed or logged, because the run's own error is the one to raise.
    """
    with contextlib.suppress(UserError):
        _record_end(this, this.stop.status or FAILED)
    summaries.close_event_files()
    try:
        ending.copy_results(this.config, this.runtime.rank, this.runtime.leader_dir)
    except UserError as error:
        logging.error('%s', error)
