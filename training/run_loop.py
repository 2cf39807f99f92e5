"""A run: train, eval or train_and_eval, and what happens when it is started again."""
import contextlib
import dataclasses
import os

from absl import logging
import tensorflow.compat.v1 as tf

from export import saved_model
from export import source as sources
import obs
import runtime as runtimes
import screening
from training import checkpoints
from training import config as configs
from training import environment
from training import evaluations
from training import hooks
from training import pipelines
from training import progress
from training import results
from training import summaries
from training.model_fn import PROGRESS
from training.model_fn import model_fn
from user_error import UserError


def run(config):
    """Does what `config` says; raises UserError where the user can help."""
    runtime = runtimes.select(config)
    config = runtime.config
    loop = _Loop(config, runtime)
    _prepare_model_dir(config, runtime)
    modes = {'train': loop.train, 'eval': loop.evaluate_as_they_come,
             'train_and_eval': loop.train_and_evaluate}
    with _copied_when_over(config, runtime.rank), _readable_errors(loop):
        results.append(loop.results_dir, 'run_start', mode=config.run.mode,
                       model_name=config.model.model_name, step=loop.step,
                       total_steps=config.total_steps,
                       environment=environment.describe(runtime.device_name))
        results.append(loop.results_dir, 'config', **dataclasses.asdict(config))
        for record in loop.bad_records:
            results.append(loop.results_dir, 'bad_record', **dataclasses.asdict(record))
        status = 'failed'
        try:
            status = modes[config.run.mode]()
        finally:
            results.append(loop.results_dir, 'run_stop', step=loop.step, status=status,
                           bad_records=len(loop.bad_records))
    if runtime.rank == 0 and config.run.mode != 'train':
        table = evaluations.table(results.read(config.run.model_dir), config.run.model_dir)
        if table:
            print(table)
    if loop.bad_records:
        logging.info('%d bad records were skipped.', len(loop.bad_records))


def _prepare_model_dir(config, runtime):
    """Makes model_dir, refuses one that holds another model, and writes the configuration there."""
    model_dir = config.run.model_dir
    if model_dir != runtime.leader_dir:
        checkpoints.follow(runtime.leader_dir, model_dir)
    earlier = configs.load(model_dir)
    checkpoint = checkpoints.latest(model_dir)
    if checkpoint:
        checkpoints.check_model(
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
            checkpoints.check_whole(
                checkpoints.find(config.run.init_checkpoint, 'init_checkpoint'))
    try:
        tf.gfile.MakeDirs(model_dir)
        # Whoever evaluates a run that is under way leaves its configuration alone.
        if config.run.mode != 'eval' and runtime.rank == 0:
            config.save()
    except tf.errors.OpError as error:
        raise UserError(f'--model_dir={model_dir} cannot be written ({error.message}); choose '
                        'another folder.') from error


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


def _difference(earlier, now):
    return ' and '.join(
        f'--{name}={getattr(earlier, name)} (now {getattr(now, name)})'
        for name in vars(earlier) if getattr(earlier, name) != getattr(now, name))


class _Loop:
    """The state that train, eval and their combination share: the Estimators and the inputs."""

    def __init__(self, config, runtime):
        self._config = config
        self._runtime = runtime
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
        skipped = screening.by_shard(self.bad_records)
        self._train_input = dataclasses.replace(self._train_input, skipped=skipped)
        self._eval_input = dataclasses.replace(self._eval_input, skipped=skipped)
        kinds = [checkpoints.RAW]
        if config.optimization.moving_average_decay:
            kinds.append(checkpoints.EMA)
        # Training makes its own; these evaluate.
        self._estimators = {
            weights: runtime.build_estimator(model_fn, self._params(weights)) for weights in kinds}

    @property
    def step(self):
        """The step training would resume from."""
        return checkpoints.step_of(checkpoints.latest(self._config.run.model_dir))

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
                raise UserError(f'{record} It is bad record number {len(found)}: repair the data, '
                                f'or raise --max_bad_records={limit}.')
        return found

    def _all_bad_records(self):
        for pipeline in self._used_inputs:
            yield from pipeline.find_bad_records()

    def bad_record_behind(self, error):
        """The first bad record, if it can be one that the error comes from; else None."""
        if not isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError)):
            return None
        logging.info('Looking for the record that stopped the run.')
        return next((record for record in self._all_bad_records()
                     if record not in self.bad_records), None)

    def train(self):
        if self._is_finished():
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
            self._evaluate(checkpoints.latest(self._config.run.model_dir))
        if is_finished:
            return 'already_finished'
        while step < total_steps:
            self._train_until(min(total_steps, (step // round_steps + 1) * round_steps))
            step = self.step
            self._evaluate(checkpoints.latest(self._config.run.model_dir))
        self._export()
        return 'finished'

    def evaluate_as_they_come(self):
        """Evaluates the last checkpoint, then each new one until that of the last training step."""
        run = self._config.run
        if run.eval_once:
            self._evaluate(checkpoints.latest(run.model_dir))
            return 'finished'
        for checkpoint in tf.train.checkpoints_iterator(run.model_dir, timeout=run.eval_timeout):
            self._evaluate(checkpoint)
            if checkpoints.step_of(checkpoint) >= self._config.total_steps:
                return 'finished'
        logging.info('No new checkpoint in %s for %d seconds.', run.model_dir, run.eval_timeout)
        return 'finished'

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
            return [hooks.ProgressHook(
                self.results_dir, PROGRESS, config.run.log_step_count_steps,
                config.total_steps, config.steps_per_epoch, config.global_batch_size,
                steps_per_run, display, self._board, self._stall)]

        def input_fn():
            return dataclasses.replace(
                self._train_input, start_step=self.step,
                on_wait=self._stall and self._stall.add).dataset()

        with progress.shown(self._runtime.rank == 0) as display:
            self._runtime.train(
                model_fn, self._params(checkpoints.RAW), input_fn, max_steps, make_hooks)

    def _params(self, weights):
        return dict(config=self._config, runtime=self._runtime, weights=weights)

    def _evaluate(self, checkpoint):
        """Evaluates each kind of weights; the best checkpoint by the last kind is archived."""
        if self._runtime.rank:
            return
        step = checkpoints.step_of(checkpoint)
        name = self._config.run.eval_name
        for weights, estimator in self._estimators.items():
            label = '_'.join(filter(None, (name, weights)))
            metrics = self._runtime.evaluate(
                estimator, self._eval_input.dataset, checkpoint, label)
            evaluation = dict(
                step=step, epoch=round(step / self._config.steps_per_epoch, 4), name=name,
                weights=weights, num_images=int(metrics['num_images']),
                **{key: float(metrics[key]) for key in ('top_1', 'top_5', 'cross_entropy')})
            results.append(self.results_dir, 'eval', **evaluation)
            if 'confusion_matrix' in metrics:
                summaries.write_evaluation(
                    summaries.evaluation_folder(self._config.run.model_dir, label), step,
                    metrics['confusion_matrix'], self._config.class_names)
            logging.info(
                'step %d  %s weights: top-1 %.4f  top-5 %.4f  cross entropy %.4f  on %d images',
                step, weights, evaluation['top_1'], evaluation['top_5'],
                evaluation['cross_entropy'], evaluation['num_images'])
        if self._config.run.archive_ckpt and checkpoints.archive_if_best(
                self._config.run.model_dir, checkpoint, evaluation):
            logging.info('Best so far; archived in %s.', os.path.join(
                self._config.run.model_dir, checkpoints.ARCHIVE_DIR))

    def _last_evaluated_step(self):
        """The last step whose evaluation is complete: of each kind of weights. 0 for none."""
        evaluated = {kind: set() for kind in self._estimators}
        for event in results.read(self._config.run.model_dir):
            if event['event'] == 'eval' and event['weights'] in evaluated:
                evaluated[event['weights']].add(event['step'])
        return max(set.intersection(*evaluated.values()), default=0)

    def _export(self):
        if self._runtime.rank or not self._config.run.export_dir:
            return
        weights = list(self._estimators)[-1]
        source = sources.of_run(
            self._config, checkpoints.latest(self._config.run.model_dir), weights)
        report = saved_model.publish(source, self._config.run.export_dir)
        results.append(self.results_dir, 'export', step=source.step, path=report.path)
        logging.info('SavedModel written to %s', report)


@contextlib.contextmanager
def _copied_when_over(config, rank):
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
    obs.copy_folder(model_dir, obs_dir)
    for folder in config.runtime.output_dirs.values():
        path = os.path.join(folder, str(rank))
        if tf.gfile.IsDirectory(path) and not path.startswith(os.path.join(model_dir, '')):
            obs.copy_folder(path, os.path.join(obs_dir, os.path.basename(folder), str(rank)))
    logging.info('Results copied to %s.', obs_dir)


@contextlib.contextmanager
def _readable_errors(loop):
    """Turns what TensorFlow raises for a user's mistake into one sentence."""
    try:
        yield
    except tf.errors.OpError as error:
        record = loop.bad_record_behind(error)
        if record:
            raise UserError(f'{record} --max_bad_records lets a run go on without such '
                            'records.') from error
        if isinstance(error, tf.errors.PermissionDeniedError):
            raise UserError(f'{error.message.splitlines()[0]}: correct the rights, or choose '
                            'another folder.') from error
        raise
    except tf.train.NanLossDuringTrainingError as error:
        raise UserError('The loss is not finite; the last good checkpoint is kept. Lower '
                        '--base_learning_rate or lengthen --lr_warmup_epochs, and start '
                        'again.') from error
