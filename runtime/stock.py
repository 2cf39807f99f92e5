"""The runtime of stock TensorFlow: CPUs or GPUs, one process or the workers of TF_CONFIG."""
import contextlib
import dataclasses
import os

from absl import logging
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.paths import make_rank_dir
from condconv_layers import CHANNELS_FIRST
from runtime import cluster
from runtime import precision

_NPU_ONLY = ('modify_mixlist', 'over_dump', 'dump_mode', 'npu_auto_tune', 'op_select_implmode',
             'hcom_parallel', 'enable_data_pre_proc', 'iterations_per_loop', 'eval_accelerator',
             'overflow_mode', 'npu_option')


class StockRuntime:
    """Runs a model_fn with the stock Estimator.

    Attributes:
      rank: rank of this process, from 0.
      world_size: number of ranks.
      ranks_on_host: number of ranks on this machine.
      config: the `Config` of this rank, world size included.
      leader_dir: model_dir of rank 0, which all ranks share.
      computes_on_cpu, evaluates_on_cpu: whether a CPU computes the network, in training and in
        evaluation.
      fuses_batch_norm_update: see `NPURuntime`.
      keeps_checkpoints: whether this rank keeps the checkpoints that it saves. All ranks save at
        the same steps, because saving averages batch statistics over the ranks; rank 0 keeps them.
      saves_in_background: whether training continues while a checkpoint is saved.
      skips_overflows: whether the optimizer skips steps whose gradients overflow.

    Raises:
      UserError: a flag needs a GPU or an NPU, a flag does not work with several workers, or
        TF_CONFIG is invalid.
    """

    fuses_batch_norm_update = False

    def __init__(self, config):
        _keep_freed_memory()
        self._cluster = cluster.Cluster()
        self.rank, self.world_size = self._cluster.rank, self._cluster.world_size
        self.ranks_on_host = self._cluster.ranks_on_host
        self.config = dataclasses.replace(config, num_ranks=self.world_size)
        self.leader_dir = config.run.model_dir
        self._mixes = False
        self._has_gpu = tf.test.is_gpu_available()
        # Evaluation on a CPU falls back to channels_last.
        if (config.optimization.data_format == CHANNELS_FIRST and config.trains
                and not self._has_gpu):
            raise UserError('--data_format=channels_first: TensorFlow has no such convolutions for '
                            'CPUs; use channels_last, a GPU or an NPU.')
        if config.run.save_checkpoints_secs and self.world_size > 1:
            raise UserError('--save_checkpoints_secs: not supported with several processes, which '
                            'save at the same step; use --save_checkpoints_steps.')
        self.computes_on_cpu = self.evaluates_on_cpu = not self._has_gpu
        self.keeps_checkpoints = self.rank == 0
        self.saves_in_background = (
            config.runtime.use_async_checkpointing and self.world_size == 1)
        ignored = self._apply_precision() + self._apply_determinism() + self._npu_only()
        if ignored:
            flags = ', '.join(f'--{name}' for name in ignored)
            logging.info('Flags without effect on this runtime (no NPU): %s.', flags)

    def __deepcopy__(self, memo):
        # Estimators deep-copy their params, but a process can have only one set of servers.
        return self

    def build_estimator(self, model_fn, params):
        """Returns an Estimator for evaluation and prediction in this process alone."""
        return self._estimator(model_fn, params, self.session_config)

    def _estimator(self, model_fn, params, session_config, strategy=None):
        run, random_seed = self.config.run, self.config.data.random_seed
        return tf.estimator.Estimator(model_fn, params=params, config=tf.estimator.RunConfig(
            model_dir=run.model_dir,
            train_distribute=strategy,
            # The strategy broadcasts the initial weights, while dropout must differ by rank.
            tf_random_seed=random_seed if random_seed is None else random_seed + self.rank,
            # The hooks of the run save checkpoints, log and write summaries.
            save_checkpoints_steps=None,
            save_checkpoints_secs=None,
            save_summary_steps=0,
            log_step_count_steps=None,
            session_config=session_config))

    @property
    def device_name(self):
        """Type of the device that computes the network: 'CPU' or 'GPU'."""
        return 'CPU' if self.computes_on_cpu else 'GPU'

    @property
    def software(self):
        """Name and release of the engine below TensorFlow: none, an empty string."""
        return ''

    @property
    def precision(self):
        """Description of the precision of a step, for the log."""
        if not self._mixes:
            return 'float32'
        return f"float16 and float32, loss scale {self.config.runtime.loss_scale or 'dynamic'}"

    @property
    def skips_overflows(self):
        return self._mixes and self.config.runtime.loss_scale in (None, 'dynamic')

    @property
    def session_config(self):
        """The ConfigProto of evaluation and prediction."""
        session_config = tf.ConfigProto(allow_soft_placement=True)
        session_config.gpu_options.allow_growth = True
        return session_config

    @property
    def training_session_config(self):
        """The ConfigProto of training."""
        session_config = self.session_config
        # TensorFlow's graph optimizer hardly changes a training step on a CPU, but the start takes
        # more than twice as long. Several ranks need it, because it merges their all-reduces.
        session_config.graph_options.rewrite_options.disable_meta_optimizer = (
            self.computes_on_cpu and self.world_size == 1)
        return session_config

    @staticmethod
    def estimator_spec(**fields):
        return tf.estimator.EstimatorSpec(**fields)

    def wrap_optimizer(self, optimizer):
        """Wraps an optimizer for mixed precision, if it is enabled and there is a GPU.

        Mixed precision rewrites the graph to float16 and scales the loss.

        Returns:
          (optimizer, loss scale). The loss scale is a scalar tensor, or None without mixed
          precision.
        """
        if not self._mixes:
            return optimizer, None
        loss_scale = self.config.runtime.loss_scale or 'dynamic'
        if loss_scale != 'dynamic':
            loss_scale = 1.0 if loss_scale == 'none' else float(loss_scale)
        optimizer = tf.train.experimental.enable_mixed_precision_graph_rewrite(
            optimizer, loss_scale)
        # TensorFlow 1.15 has no public access to the loss scale except a summary.
        return optimizer, optimizer._loss_scale()

    def train(self, model_fn, params, input_fn, max_steps, make_hooks, has_stopped=None):
        """Trains to global step `max_steps` in one session, from the latest checkpoint if any.

        Args:
          model_fn: model_fn of the Estimator.
          params: dict, passed to model_fn.
          input_fn: function that returns the Dataset.
          max_steps: global step to reach.
          make_hooks: function of the number of steps per session.run, here 1, that returns a list
            of new hooks; one of them saves checkpoints.
          has_stopped: ignored, see `NPURuntime.train`.
        """
        del has_stopped
        hooks, session_config = make_hooks(1) + self._debug_hooks(), self.training_session_config
        if self.world_size == 1:
            self._estimator(model_fn, params, session_config).train(
                input_fn, hooks=hooks, max_steps=max_steps)
            return
        with self._cluster.described():
            # Estimator.train does not accept TF_CONFIG. train_and_evaluate only trains here, since
            # no task has the type "evaluator".
            tf.estimator.train_and_evaluate(
                self._estimator(model_fn, params, session_config, self._cluster.strategy),
                tf.estimator.TrainSpec(input_fn, max_steps, hooks),
                tf.estimator.EvalSpec(input_fn))

    @staticmethod
    def evaluating():
        """Returns the context manager in which an evaluation session is created and run."""
        return contextlib.nullcontext()

    def write_graph(self, graph, name):
        """Writes a graph to the file `name` if --npu_dump_graph is set."""
        settings = self.config.runtime
        if settings.npu_dump_graph:
            tf.train.write_graph(
                graph, make_rank_dir(settings.graph_dir, self.rank), name, as_text=False)

    def _debug_hooks(self):
        run, settings = self.config.run, self.config.runtime
        hooks = [_WriteGraphHook(self)]
        if settings.npu_profiling:
            hooks.append(tf.train.ProfilerHook(
                save_steps=run.log_step_count_steps,
                output_dir=make_rank_dir(settings.profiling_dir, self.rank)))
        if settings.npu_dump_data:
            # Imported late, because importing tfdbg is slow.
            from runtime import debug_hooks
            hooks.append(debug_hooks.DumpStepsHook(
                make_rank_dir(settings.dump_dir, self.rank), settings.dump_steps))
        return hooks

    # Each method below returns the names of flags without effect.

    def _apply_precision(self):
        settings = self.config.runtime
        mode = precision.of(vars(settings))
        on_stock = mode.on_stock if mode else precision.FLOAT32
        self._mixes = on_stock == precision.MIXED and self._has_gpu
        ignored = []
        if not self._mixes:
            if on_stock != precision.FLOAT32:
                ignored.append('precision_mode_v2' if settings.precision_mode_v2
                               else 'precision_mode')
            if settings.loss_scale not in (None, 'none'):
                ignored.append('loss_scale')
        return ignored

    def _apply_determinism(self):
        if not self.config.runtime.deterministic:
            return []
        os.environ['TF_CUDNN_DETERMINISTIC'] = '1'
        return [] if self._has_gpu else ['deterministic']

    def _npu_only(self):
        settings = self.config.runtime
        ignored = [field.name for field in dataclasses.fields(settings)
                   if field.name in _NPU_ONLY and getattr(settings, field.name) != field.default]
        return ignored + ['use_async_checkpointing'] * (
            settings.use_async_checkpointing and not self.saves_in_background)


class _WriteGraphHook(tf.train.SessionRunHook):
    """Writes the finalized graph of a training session through the runtime."""

    def __init__(self, runtime):
        self._runtime = runtime

    def after_create_session(self, session, coord):
        self._runtime.write_graph(session.graph, 'train.pb')


def _keep_freed_memory():
    """Makes TensorFlow reuse freed CPU memory, unless the environment sets the allocator.

    Must run before TensorFlow first lists its devices.
    """
    # malloc returns tensors of tens of megabytes to the kernel, which has to clear the pages for
    # the next tensor. Without BFC, a step of batch 32 takes 10 % longer and 0.5 GB more memory.
    os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')
    # TensorFlow's default limit is 64 GB, even on machines with more memory.
    physical_mb = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20
    os.environ.setdefault('TF_CPU_BFC_MEM_LIMIT_IN_MB', str(physical_mb))
