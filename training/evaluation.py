"""Evaluates checkpoints: metrics, archive of the best one, and jobs that wait for new ones."""
import contextlib
import os
import time

from absl import logging
import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from checkpoints.best import archive_if_best
from checkpoints.best import is_of_the_run
from common.errors import UserError
from common.files import check_still_there
from common.quantities import secs_text
from common.stages import stage
from config import run_config
from run_log import class_metrics
from run_log import event_log
from training import inputs
from training import progress
from training import summaries
from training.evaluation_session import EvaluationSession
from training.model_fn import make_params
from training.model_fn import model_fn


def label_of(config, weights):
    """Returns the name of an evaluation in TensorBoard: --eval_name, if given, and the weights."""
    return '_'.join(filter(None, (config.run.eval_name, weights)))


def kinds_of_weights(config):
    """Returns the kinds of weights of a run: `restore.RAW`, then `restore.EMA` if it has them.

    The last one decides which checkpoint is the best.
    """
    has_average = config.optimization.moving_average_decay > 0
    return [restore.RAW, restore.EMA] if has_average else [restore.RAW]


class Evaluator:
    """Evaluates checkpoints of a run: raw weights and, if the run has one, their moving average.

    A context manager. The session opens in `open`, or in the first evaluation.

    Args:
      config: the run's `Config`.
      runtime: the runtime from `runtime.select`.
      images: `ImageNetInput` for evaluation.
      stop: `preemption.StopRequest`; an interrupted evaluation writes no results.

    Attributes:
      kinds: see `kinds_of_weights`.
    """

    def __init__(self, config, runtime, images, stop):
        self._config = config
        self._runtime = runtime
        self._images = images
        self._stop = stop
        self.kinds = kinds_of_weights(config)
        # Built before training starts: later, TF_CONFIG would make this Estimator one of the
        # training workers.
        self._estimator = runtime.build_estimator(model_fn, make_params(config, runtime))
        self._session = None
        self._has_evaluated = False
        # The config of the run, also if model_dir is its archive.
        run = run_config.of_folder(config.run.model_dir)
        self._other_preprocessing = {}
        if run and run.image_size != config.image_size:
            self._other_preprocessing['image_size'] = config.image_size.written
        self._num_images = inputs.num_evaluation_images(config)    # None if unknown

    def __enter__(self):
        return self

    def __exit__(self, *details):
        if self._session:
            self._session.__exit__(*details)

    def open(self):
        """Builds the graph and opens the session, unless they exist already.

        Raises:
          UserError: the device refuses the session.
        """
        if self._session:
            return
        with stage('Building the evaluation graph'), self._runtime.evaluating():
            self._session = EvaluationSession(
                self._estimator, self._images.dataset, self._config.data.random_seed)
        self._runtime.write_graph(self._session.graph, 'eval.pb')

    def is_missing(self, step):
        """Returns whether the checkpoint of `step` is due for evaluation but was not evaluated."""
        config, last_step = self._config, self._last_evaluated_step()
        return step > last_step and (
            step >= config.total_steps or config.rounds_at(step) > config.rounds_at(last_step))

    def evaluate(self, checkpoint, display=None):
        """Evaluates each kind of weights, archives the best checkpoint, and records the metrics.

        Args:
          checkpoint: path prefix.
          display: `progress.Lines` or `progress.LiveLine` of the surrounding training; None for
            one of its own.
        """
        self.open()
        step, model_dir = store.step_of(checkpoint), self._config.run.model_dir
        shown = contextlib.nullcontext(display) if display else progress.shown(
            not self._config.run.quiet)
        with shown as display_or_own:
            evaluated = [self._evaluate_weights(checkpoint, step, weights, display_or_own)
                         for weights in restore.weights_to_use(checkpoint, self.kinds)]
        if self._config.run.archive_ckpt and archive_if_best(
                model_dir, checkpoint, evaluated[-1], self._config.run.best_metric):
            logging.info('Best so far; archived in %s.',
                         os.path.join(model_dir, store.ARCHIVE_DIR))
        # Written last: if the process is killed before, the next run repeats the evaluation.
        for evaluation in evaluated:
            event_log.append(model_dir, 'eval', **evaluation)

    def evaluate_new_checkpoints(self):
        """Evaluates the newest checkpoint, then new ones until that of the last training step.

        Returns earlier if no new checkpoint appears within --eval_timeout seconds.
        """
        run, total_steps = self._config.run, self._config.total_steps
        for checkpoint in store.arriving(
                run.model_dir, run.eval_timeout,
                lambda last: f'a checkpoint after step {store.step_of(last)} of {total_steps}',
                self._stop.check):
            try:
                self.evaluate(checkpoint)
            except (tf.errors.OpError, ValueError, UserError):
                if store.is_complete(checkpoint):
                    raise
                logging.warning('%s: removed during its evaluation, skipped; raise '
                                '--keep_checkpoint_max to keep checkpoints longer.', checkpoint)
                continue
            if store.step_of(checkpoint) >= total_steps:
                return
        logging.info('No new checkpoint in %s for %g seconds.', run.model_dir, run.eval_timeout)

    def _evaluate_weights(self, checkpoint, step, weights, display):
        """Evaluates one kind of weights and returns the fields of its 'eval' event."""
        label = '_'.join([label_of(self._config, weights), *(
            f'{size}px' for size in self._other_preprocessing.values())])
        start_secs = time.monotonic()
        # The device compiles the graph in the first evaluation, and may refuse it there.
        explained = contextlib.nullcontext() if self._has_evaluated else self._runtime.evaluating()
        with explained:
            with progress.evaluating(
                    display, f'Evaluating step {step}, {weights} weights:',
                    self._config.data.eval_batch_size, self._num_images) as show:
                metrics = self._session.evaluate(checkpoint, weights, self._before_batch(show))
        self._has_evaluated = True
        self._num_images = int(metrics['num_images'])
        evaluation = dict(
            step=step, epoch=round(self._config.epoch_at(step), 4),
            name=self._config.run.eval_name, weights=weights,
            num_images=int(metrics['num_images']),
            **{key: float(metrics[key]) for key in ('top_1', 'top_5')},
            cross_entropy=event_log.finite(metrics['cross_entropy']),
            macro_f1=round(class_metrics.macro_f1(metrics), 6),
            **self._other_preprocessing)
        check_still_there(self._config.run.model_dir)
        summaries.write_evaluation(
            class_metrics.evaluation_folder(self._config.run.model_dir, label), step, metrics,
            checkpoint, self._config.shown_class_names, self._session.graph)
        if self._config.run.per_class_csv:
            class_metrics.write_csv(self._config.run.per_class_csv, class_metrics.scores(
                metrics, self._config.shown_class_names))
        logging.info(
            'step %d  %s weights: top-1 %.4f  top-5 %.4f  cross entropy %.4f  on %d images in %s',
            step, weights, metrics['top_1'], metrics['top_5'], metrics['cross_entropy'],
            evaluation['num_images'], secs_text(time.monotonic() - start_secs))
        return evaluation

    def _before_batch(self, show):
        """Returns the function to call before each batch with the number of batches done."""
        compiling = contextlib.ExitStack()

        def before_batch(number):
            self._stop.check()
            if number == 0 and not self._has_evaluated:
                compiling.enter_context(stage('Compiling the evaluation graph in the first batch'))
            elif number == 1:
                compiling.close()
            show(number)

        return before_batch

    def _last_evaluated_step(self):
        """Returns the last step at which every kind of weights was evaluated, or 0."""
        evaluated = {kind: set() for kind in self.kinds}
        for event in event_log.read(self._config.run.model_dir):
            # Events with another name come from another job, such as --mode=eval beside the run.
            if (event['event'] == 'eval' and event['weights'] in evaluated
                    and is_of_the_run(event)
                    and event.get('name') == self._config.run.eval_name):
                evaluated[event['weights']].add(event['step'])
        return max(set.intersection(*evaluated.values()), default=0)
