"""A run: train, eval or train_and_eval, and what happens when it is started again."""
import contextlib
import dataclasses
import os
import time

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import repair
from checkpoints import restore
from checkpoints import store
from checkpoints.best import archive_if_best
from checkpoints.best import best_evaluation
from common.errors import UserError
from common.files import held
from common.files import readable_errors
from common.paths import check_output_folder
from config import run_config
from export import saved_model
from export import trained_model
from run_log import class_metrics
from run_log import environment
from run_log import evaluation_table
from run_log import event_log
import runtime as runtimes
from tfrecords import validation
from training import ending
from training import hooks
from training import nan_guard
from training import pipelines
from training import preemption
from training import progress
from training import summaries
from training.model_fn import PROGRESS
from training.model_fn import model_fn

_POLL_SECS = 1


def run(config):
    """Does what `config` says; raises UserError where the user can help.

    Returns:
      the exit code: 0, also when the time was up, or 128 + the number of the signal that ended it.
    """
    deadline = config.deadline(time.time())
    runtime = runtimes.select(config)
    with preemption.Stop(deadline, is_alone=runtime.num_ranks == 1) as stop:
        _run(runtime.config, runtime, stop)
    return stop.exit_code


def _run(config, runtime, stop):
    # Before the data are looked at, which may take as long as an epoch.
    with readable_errors():
        _check_model_dir(config, runtime)
    loop = _Loop(config, runtime, stop)
    modes = {'train': loop.train, 'eval': loop.evaluate_as_they_come,
             'train_and_eval': loop.train_and_evaluate}
    with ending.readable_errors(
            loop.bad_record_behind, config.run.model_dir), _prepared_model_dir(
                config, runtime), ending.copied_results(config, runtime.rank):
        event_log.append(loop.results_dir, 'run_start', mode=config.run.mode,
                       model_name=config.model.model_name, step=loop.step,
                       total_steps=config.total_steps,
                       environment=environment.describe(runtime.device_name))
        event_log.append(loop.results_dir, 'config', **dataclasses.asdict(config))
        for record in loop.bad_records:
            event_log.append(loop.results_dir, 'bad_record', path=record.path, index=record.index,
                             fault=record.reason)
        try:
            status = modes[config.run.mode]()
        except BaseException:
            # On a full disk this fails as well, but is not what is to be said.
            with contextlib.suppress(UserError):
                loop.log_end(stop.status or 'failed')
            raise
        loop.log_end(status)
    if runtime.rank == 0 and config.run.mode != 'train':
        table = evaluation_table.table(event_log.read(config.run.model_dir), config.run.model_dir)
        if table:
            print(table)
    if loop.bad_records:
        logging.info('%d bad records were skipped.', len(loop.bad_records))


@contextlib.contextmanager
def _prepared_model_dir(config, runtime):
    """Makes and locks model_dir; refuses one that is in use."""
    model_dir = config.run.model_dir
    try:
        tf.gfile.MakeDirs(model_dir)
    except tf.errors.OpError as error:
        raise UserError(f'--model_dir={model_dir} cannot be made ({error.message}); choose another '
                        'folder.') from error
    if config.run.mode == 'eval':
        # Whoever evaluates a run that is under way leaves everything to that.
        yield
    elif runtime.rank and model_dir == runtime.leader_dir:
        repair.wait_for_repair(model_dir)
        yield
    else:
        with held(model_dir):
            repair.repair(model_dir)
            if model_dir != runtime.leader_dir:
                repair.follow(runtime.leader_dir, model_dir)
            if runtime.rank == 0:
                config.save()
            yield


def _check_model_dir(config, runtime):
    """Raises UserError if what is in model_dir, or in rank 0's, does not fit the configuration."""
    model_dir = runtime.leader_dir
    for folder in (os.path.join(model_dir, store.ARCHIVE_DIR), *(
            class_metrics.evaluation_folder(model_dir, _label(config, weights))
            for weights in (restore.RAW, restore.EMA))):
        check_output_folder(folder, '')
    # What is damaged is told here, before anything is changed.
    event_log.read(model_dir)
    best_evaluation(model_dir)
    earlier = run_config.load(model_dir)
    checkpoint = store.latest(model_dir)
    if checkpoint:
        restore.check_model(
            checkpoint, config.model.model_name, config.model.num_label_classes)
    if checkpoint and earlier and earlier.model != config.model:
        raise UserError(f'{model_dir} holds a model with '
                        f'{_difference(earlier.model, config.model)}; use the same flags or '
                        'another --model_dir.')
    if config.run.mode != 'eval':
        _check_start(config, earlier, checkpoint)
    if config.run.mode == 'eval' and config.run.eval_once and not checkpoint:
        raise UserError(f'{model_dir} holds no checkpoint to evaluate; check --model_dir.')
    if config.run.mode != 'eval' and config.run.init_checkpoint:
        if checkpoint:
            logging.info('%s has a checkpoint: --init_checkpoint is not used.', model_dir)
        else:
            store.check_whole(
                store.find(config.run.init_checkpoint, 'init_checkpoint'))


def _check_start(config, earlier, checkpoint):
    """Refuses to freeze random weights, and to resume with other optimizer state than was saved."""
    model_dir = config.run.model_dir
    if config.optimization.freeze and not checkpoint and not config.run.init_checkpoint:
        raise UserError('--freeze without --init_checkpoint would keep random weights; name the '
                        'checkpoint to start from.')
    for name in ('optimizer', 'freeze') if checkpoint and earlier else ():
        before, now = getattr(earlier.optimization, name), getattr(config.optimization, name)
        if before != now:
            raise UserError(f'{model_dir} was trained with --{name}={before} (now {now}), whose '
                            'state it holds; use the same, or start a new --model_dir with '
                            f'--init_checkpoint={model_dir}.')
    decay = config.optimization.moving_average_decay
    if checkpoint and decay and not restore.has_ema(checkpoint):
        raise UserError(f'{checkpoint} holds no moving averages for --moving_average_decay={decay} '
                        'to go on with; use 0, or start a new --model_dir with '
                        f'--init_checkpoint={model_dir}.')


def _label(config, weights):
    """What an evaluation of such weights is called in TensorBoard."""
    return '_'.join(filter(None, (config.run.eval_name, weights)))


def _difference(earlier, now):
    return ' and '.join(
        f'--{name}={getattr(earlier, name)} (now {getattr(now, name)})'
        for name in vars(earlier) if getattr(earlier, name) != getattr(now, name))


class _Loop:
    """The state that train, eval and their combination share: the Estimators and the inputs."""

    def __init__(self, config, runtime, stop):
        self._config = config
        self._runtime = runtime
        self._stop = stop
        self._overflows = nan_guard.Overflows() if runtime.skips_overflows else None
        self._stall = hooks.InputStall() if config.run.log_input_stall else None
        # Rank 0 evaluates and reports for all.
        self.results_dir = None if runtime.rank else config.run.model_dir
        self._board = None
        if self.results_dir and not config.run.skip_host_call:
            self._board = summaries.Board(self.results_dir, config.run.save_summary_steps)
        self._train_input, self._eval_input = (
            pipelines.make(config, is_training, runtime.rank, runtime.num_ranks)
            for is_training in (True, False))
        self.bad_records = self._look_for_bad_records()
        skipped = validation.by_shard(self.bad_records)
        self._train_input = dataclasses.replace(self._train_input, skipped=skipped)
        self._eval_input = dataclasses.replace(self._eval_input, skipped=skipped)
        kinds = [restore.RAW]
        if config.optimization.moving_average_decay:
            kinds.append(restore.EMA)
        # Training makes its own; these evaluate.
        self._estimators = {
            weights: runtime.build_estimator(model_fn, self._params(weights)) for weights in kinds}

    @property
    def step(self):
        """The step training would resume from."""
        return store.step_of(store.latest(self._config.run.model_dir))

    @property
    def _used_inputs(self):
        used = {'train': [self._train_input], 'eval': [self._eval_input]}
        return used.get(self._config.run.mode, [self._train_input, self._eval_input])

    def _look_for_bad_records(self):
        """The bad records of all shards that are used, up to --max_bad_records of them.

        Where none is allowed only the first records are looked at: what comes later ends the run
        when it is met.
        """
        limit, found = self._config.data.max_bad_records, []
        if not limit:
            for pipeline in self._used_inputs:
                pipeline.check_first_records()
            return found
        logging.info('--max_bad_records=%d: looking through all records once.', limit)
        for record in self._all_bad_records():
            logging.warning('Bad record in %s', record)
            found.append(record)
            if len(found) > limit:
                raise UserError(f'{record} That is {len(found)} bad records, and '
                                f'--max_bad_records={limit} allows {limit}: repair the data, or '
                                'allow more.')
        return found

    def _all_bad_records(self):
        for pipeline in self._used_inputs:
            # Rank 0 evaluates for all.
            if pipeline.is_training or not self._runtime.rank:
                yield from pipeline.find_bad_records()

    def bad_record_behind(self, error):
        """The first bad record, if it can be one that the error comes from; else None."""
        if not isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError)):
            return None
        logging.info('Looking for the record that stopped the run.')
        return next((record for record in self._all_bad_records()
                     if record not in self.bad_records), None)

    def log_end(self, status):
        """Adds the last line of the run to its results, and says how to go on if there is more."""
        if self._stop.status:
            logging.info('Ended at step %d of %d (%s). The same command goes on from there.',
                         self.step, self._config.total_steps, status)
        skipped = {'skipped_steps': self._overflows.total} if self._overflows else {}
        event_log.append(self.results_dir, 'run_stop', step=self.step, status=status,
                       bad_records=len(self.bad_records), **skipped)

    def train(self):
        if self._is_finished():
            self._make_up_for_export()
            return 'already_finished'
        self._train_until(self._config.total_steps)
        self._export()
        return 'finished'

    def train_and_evaluate(self):
        """Rounds of training and evaluation.

        Restart order: a checkpoint at or beyond the end of a round that has no evaluation yet is
        evaluated first; then training goes on to the end of the round its step is in. A round may
        go a little beyond its end (`runtime.npu`), the last one never does.
        """
        total_steps, round_steps = self._config.total_steps, self._config.steps_per_eval
        is_finished = self._is_finished()
        step, evaluated_step = self.step, self._last_evaluated_step()
        if step > evaluated_step and (
                step >= total_steps or step // round_steps > evaluated_step // round_steps):
            self._evaluate(store.latest(self._config.run.model_dir))
        if is_finished:
            self._make_up_for_export()
            return 'already_finished'
        while step < total_steps:
            self._train_until(min(total_steps, (step // round_steps + 1) * round_steps))
            step = self.step
            self._evaluate(store.latest(self._config.run.model_dir))
        self._export()
        return 'finished'

    def evaluate_as_they_come(self):
        """Evaluates the last checkpoint, then each new one until that of the last training step."""
        run = self._config.run
        if run.eval_once:
            self._evaluate(store.latest_intact(run.model_dir))
            return 'finished'
        checkpoint = None
        for checkpoint in self._new_checkpoints():
            try:
                self._evaluate(checkpoint)
            except (tf.errors.OpError, ValueError, UserError):
                if store.is_complete(checkpoint):
                    raise
                logging.warning('%s was removed in the meantime; a larger --keep_checkpoint_max '
                                'keeps it longer.', checkpoint)
                continue
            if store.step_of(checkpoint) >= self._config.total_steps:
                return 'finished'
        if not checkpoint:
            raise UserError(f'{run.model_dir} had no checkpoint for {run.eval_timeout:g} seconds; '
                            'check --model_dir, or raise --eval_timeout.')
        logging.info('No new checkpoint in %s for %g seconds.', run.model_dir, run.eval_timeout)
        return 'finished'

    def _new_checkpoints(self):
        """Yields each checkpoint that comes, until none has come for --eval_timeout seconds."""
        run, last, last_secs = self._config.run, None, time.monotonic()
        if not store.latest(run.model_dir):
            logging.info('Waiting for the first checkpoint in %s.', run.model_dir)
        while run.eval_timeout is None or time.monotonic() - last_secs < run.eval_timeout:
            checkpoint = store.latest(run.model_dir)
            if checkpoint and checkpoint != last:
                yield checkpoint
                last, last_secs = checkpoint, time.monotonic()
            else:
                time.sleep(_POLL_SECS)
                self._stop.check()

    def _is_finished(self):
        step, total_steps = self.step, self._config.total_steps
        if step >= total_steps:
            logging.info('Training is already finished: %s is at step %d of %d.',
                         self._config.run.model_dir, step, total_steps)
        elif step:
            logging.info('Resuming from step %d of %d.', step, total_steps)
        return step >= total_steps

    def _train_until(self, max_steps):
        config = self._config

        def make_hooks(steps_per_run):
            leader_dir = None if self._runtime.num_ranks == 1 else self._runtime.leader_dir
            # What is not finite ends the session before anybody reports or saves it.
            return [nan_guard.FiniteHook(config.run.model_dir, steps_per_run, self._overflows),
                    preemption.StopHook(self._stop, leader_dir, self._runtime.rank),
                    hooks.ProgressHook(
                        self.results_dir, PROGRESS, config.run.log_step_count_steps,
                        config.total_steps, config.steps_per_epoch, config.global_batch_size,
                        steps_per_run, display, self._board, self._stall, self._overflows)]

        def input_fn():
            return dataclasses.replace(
                self._train_input, start_step=self.step,
                on_wait=self._stall and self._stall.add).dataset()

        with self._stop.at_step_end(), progress.shown(self._runtime.rank == 0) as display:
            self._runtime.train(
                model_fn, self._params(restore.RAW), input_fn, max_steps, make_hooks,
                [nan_guard.SaveGuard(
                    config.run.model_dir, config.runtime.use_async_checkpointing)],
                has_stopped=lambda: self._stop.is_settled)
        step = self.step
        self._stop.is_awaited = self._runtime.num_ranks > 1 and step < config.total_steps
        self._stop.check()
        if step < max_steps:
            raise UserError(f'Training ended at step {step}, before step {max_steps}, as if '
                            'there were no more data; start again to go on.')

    def _params(self, weights):
        return dict(config=self._config, runtime=self._runtime, weights=weights)

    def _evaluate(self, checkpoint):
        """Evaluates each kind of weights; the best checkpoint by the last kind is archived."""
        if self._runtime.rank:
            return
        step = store.step_of(checkpoint)
        name, evaluated = self._config.run.eval_name, []
        for weights, estimator in self._estimators.items():
            label = _label(self._config, weights)
            metrics = self._runtime.evaluate(
                estimator, self._eval_input.dataset, checkpoint, label,
                [preemption.StopEvaluationHook(self._stop)])
            evaluation = dict(
                step=step, epoch=round(step / self._config.steps_per_epoch, 4), name=name,
                weights=weights, num_images=int(metrics['num_images']),
                **{key: float(metrics[key]) for key in ('top_1', 'top_5', 'cross_entropy')})
            if 'confusion_matrix' in metrics:
                summaries.write_evaluation(
                    class_metrics.evaluation_folder(self._config.run.model_dir, label), step,
                    metrics['confusion_matrix'], self._config.class_names)
            evaluated.append(evaluation)
            logging.info(
                'step %d  %s weights: top-1 %.4f  top-5 %.4f  cross entropy %.4f  on %d images',
                step, weights, evaluation['top_1'], evaluation['top_5'],
                evaluation['cross_entropy'], evaluation['num_images'])
        if self._config.run.archive_ckpt and archive_if_best(
                self._config.run.model_dir, checkpoint, evaluated[-1]):
            logging.info('Best so far; archived in %s.', os.path.join(
                self._config.run.model_dir, store.ARCHIVE_DIR))
        # Last of all: after a kill, what has no line here is done once more.
        for evaluation in evaluated:
            event_log.append(self.results_dir, 'eval', **evaluation)

    def _last_evaluated_step(self):
        """The last step whose evaluation is complete: of each kind of weights. 0 for none."""
        evaluated = {kind: set() for kind in self._estimators}
        for event in event_log.read(self._config.run.model_dir):
            # Under another name it is somebody else's, such as of --mode=eval beside the run.
            if (event['event'] == 'eval' and event['weights'] in evaluated
                    and event.get('name') == self._config.run.eval_name):
                evaluated[event['weights']].add(event['step'])
        return max(set.intersection(*evaluated.values()), default=0)

    def _make_up_for_export(self):
        """Exports where a kill came after the last checkpoint, and before that."""
        path = saved_model.published_path(self._config.run.export_dir, self.step)
        if not tf.gfile.Exists(path):
            self._export()

    def _export(self):
        if self._runtime.rank or not self._config.run.export_dir:
            return
        weights = list(self._estimators)[-1]
        trained = trained_model.of_run(
            self._config, store.latest(self._config.run.model_dir), weights)
        report = saved_model.publish(trained, self._config.run.export_dir)
        event_log.append(self.results_dir, 'export', step=trained.step, path=report.path)
        logging.info('SavedModel written to %s', report)
