"""Ascend 910 through Huawei's npu_bridge, of any release from early 2021 (dev) to 2023 (r1.15).

Sections are those of docs/npu_bridge.md, the contract of these releases. Every setting is passed by
keyword to NPURunConfig, DumpConfig or ProfilingConfig: the NpuOptimizer entry that NPUEstimator
writes overwrites one made by hand (section 4).
"""
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
import types

from absl import logging
import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.errors import first_line
from common.paths import make_rank_dir
from runtime import npu_env
from runtime import npu_settings
from runtime import precision
from runtime import vector_gradients

# Exported by npu_bridge.npu_init in every release (section 1).
_NAMES = ('NPURunConfig', 'DumpConfig', 'ProfilingConfig', 'NPUEstimator', 'NPUEstimatorSpec',
          'NPUDistributedOptimizer', 'NPULossScaleOptimizer', 'FixedLossScaleManager',
          'ExponentialUpdateLossScaleManager')
_PLUGIN = 'npu_bridge.estimator.npu.npu_plugin'  # Not in every release.

# A scaled loss of 1 stays below 65504, the maximum of float16. Huawei's ports also halve the scale
# after two overflows and double it after 1000 good steps (section 7).
_DYNAMIC_LOSS_SCALE = {'init_loss_scale': 2 ** 15, 'incr_every_n_steps': 1000,
                       'decr_every_n_nan_or_inf': 2, 'decr_ratio': 0.5}

# An argument of NPURunConfig by which a release is recognized (section 2).
_ARGUMENT_SINCE_R1_11 = 'aoe_config_file'

# --overflow_mode -> the argument of set_device_sat_mode (section 7).
_OVERFLOW_MODES = {'saturate': 0, 'inf_nan': 1}

# How long ranks wait in an all-reduce, which has to be longer than any evaluation. The engine takes
# at most 17,340 s (section 10).
_EVALUATION_TIMEOUT_SECS = {'npu': 3600, 'cpu': 17340}


def is_installed():
    """Returns whether there is an npu_bridge, which may be broken."""
    return 'npu_bridge' in sys.modules or importlib.util.find_spec('npu_bridge') is not None


def load_bridge():
    """Completes the environment of the job and imports npu_bridge.

    Sessions without an NPUEstimator stay off the device.

    Returns:
      a namespace of the classes that this module uses.

    Raises:
      UserError: npu_bridge is missing or broken, or the environment describes the job incompletely
        (`npu_env.rank_and_size`).
    """
    if not is_installed():
        raise UserError('npu_bridge: not installed in this Python; install the TensorFlow adapter '
                        f'of CANN and source its set_env.sh, or {npu_env.WITHOUT_NPUS}.')
    npu_env.rank_and_size()
    npu_env.complete_environment()
    try:
        with _unpatched_sessions():
            return _import_bridge()
    # A broken CANN raises NameError, OSError and others, or ends the process.
    except (Exception, SystemExit) as error:
        raise UserError(
            f'npu_bridge: installed, but it cannot be imported ({type(error).__name__}: '
            f"{first_line(error)}); source CANN's set_env.sh or install it again, or "
            f'{npu_env.WITHOUT_NPUS}.') from error


def _import_bridge():
    module = importlib.import_module('npu_bridge.npu_init')
    try:
        plugin = importlib.import_module(_PLUGIN)
    except ModuleNotFoundError as error:
        if error.name != _PLUGIN:
            raise
        plugin = None
    return types.SimpleNamespace(
        set_device_sat_mode=getattr(plugin, 'set_device_sat_mode', None),
        **{name: getattr(module, name) for name in _NAMES})


@contextlib.contextmanager
def _unpatched_sessions():
    # From r1.9 on, npu_init puts every session of the process on the device (section 1). A session
    # that reads a checkpoint would then start the engine with other options than the training's.
    constructors = [(kind, kind.__init__) for kind in (tf.Session, tf.InteractiveSession)]
    try:
        yield
    finally:
        for kind, constructor in constructors:
            kind.__init__ = constructor


class NPURuntime:
    """Runs a model_fn with NPUEstimator, one process per device.

    Attributes:
      rank: rank of this process, from 0.
      world_size: number of ranks.
      ranks_on_host: number of those on this server.
      config: the `Config` of this rank, world size included. Every rank saves checkpoints
        (section 6), so model_dir ends in `_rank_<rank>` above rank 0.
      leader_dir: the model_dir of rank 0, whose checkpoint all ranks start from.
      device_name: name of the device that computes the network.
      computes_on_cpu, evaluates_on_cpu: whether a CPU computes the network, in training and in
        evaluation.
      fuses_batch_norm_update: whether the device updates the moving statistics of batch norm within
        its kernel, if nothing but the update reads the statistics of the batch.
      keeps_checkpoints: whether this rank keeps the checkpoints that it saves.
      saves_in_background: whether training goes on while a checkpoint is saved.

    Raises:
      UserError: the installed release does not support a flag, or a directory cannot be made.
    """

    device_name = 'Ascend NPU'
    computes_on_cpu = False
    fuses_batch_norm_update = True
    keeps_checkpoints = True
    saves_in_background = False

    def __init__(self, config, bridge):
        self.rank, self.world_size = npu_env.rank_and_size()
        self.ranks_on_host = npu_env.ranks_on_host(self.rank, self.world_size)
        self.config = _of_rank(config, self.rank, self.world_size)
        self.leader_dir = config.run.model_dir
        self.evaluates_on_cpu = config.runtime.eval_accelerator == 'cpu'
        self._bridge = bridge
        if not config.trains:
            npu_env.leave_job()
        self._check_release()
        self._say_what_to_expect()
        self._set_environment()
        self._set_overflow_mode()
        self._settings = npu_settings.arguments(
            self.config, bridge, self.rank, self._waits_for_evaluation)

    # Used by the run loop -------------------------------------------------------------------------

    def build_estimator(self, model_fn, params):
        """Returns an Estimator that evaluates and predicts where --eval_accelerator says."""
        if not self.evaluates_on_cpu:
            return self._estimator(model_fn, params, iterations_per_loop=1)
        # Without the entry of NPUEstimator a session stays off the device (section 4).
        return tf.estimator.Estimator(model_fn, params=params, config=tf.estimator.RunConfig(
            model_dir=self.config.run.model_dir, session_config=_session_config()))

    def estimator_spec(self, **fields):
        """Returns an NPUEstimatorSpec of the given fields (section 5)."""
        return self._bridge.NPUEstimatorSpec(**fields)

    def wrap_optimizer(self, optimizer):
        """Wraps an optimizer to average gradients over the ranks and, if needed, scale the loss.

        With loss scaling the optimizer skips steps that overflow; all ranks skip the same steps
        (sections 6 and 7).

        Returns:
          the optimizer, and its loss scale: a scalar tensor, or None if the loss is not scaled.
        """
        if self.skips_overflows and not self.config.run.log_gradient_norm:
            optimizer = vector_gradients.VectorGradients(optimizer)
        optimizer = self._bridge.NPUDistributedOptimizer(optimizer)
        if not self.skips_overflows:
            return optimizer, None
        manager = self._loss_scale_manager()
        optimizer = self._bridge.NPULossScaleOptimizer(
            optimizer, manager, is_distributed=self.world_size > 1)
        return optimizer, manager.get_loss_scale()

    @property
    def software(self):
        """Returns what computes beside TensorFlow, with its release."""
        # Imported late: it takes a while.
        import pkg_resources
        try:
            return f"npu_bridge {pkg_resources.get_distribution('npu_bridge').version}"
        except pkg_resources.DistributionNotFound:
            return 'npu_bridge (not installed as a package: its release is not known)'

    @property
    def precision(self):
        """Returns the precision of a step in words."""
        mode = self._settings.get('precision_mode_v2') or self._settings['precision_mode']
        return f'{mode}, loss scale {self._loss_scale}'

    @property
    def skips_overflows(self):
        """Whether the optimizer skips steps that overflow, as loss scaling does (section 7)."""
        return self._loss_scale != 'none'

    def train(self, model_fn, params, input_fn, max_steps, make_hooks,
              has_stopped=lambda: False):
        """Trains to global step `max_steps`, from the latest checkpoint if there is one.

        In one session, and a second one for the steps that are fewer than a loop.

        Args:
          model_fn: model_fn of the Estimator.
          params: dict that model_fn gets.
          input_fn: function that returns the Dataset; called once per session.
          max_steps: global step to reach.
          make_hooks: function from the number of steps per session.run to a list of new hooks;
            one of them saves checkpoints.
          has_stopped: function that returns whether a hook ended the training early.
        """
        def train_session(max_steps, steps_per_run):
            if max_steps > 0:
                self._estimator(model_fn, params, steps_per_run).train(
                    input_fn, hooks=make_hooks(steps_per_run), max_steps=max_steps)

        # A loop cannot be cut short, and advances by fewer steps if one of them overflows. The last
        # steps, fewer than a loop, run one by one in a second session with a graph of its own.
        steps_per_run = self.config.runtime.iterations_per_loop
        if steps_per_run > 1:
            train_session(max_steps - steps_per_run + 1, steps_per_run)
        if not has_stopped():
            # Makes no step if the loops reached max_steps.
            train_session(max_steps, steps_per_run=1)

    @contextlib.contextmanager
    def evaluating(self):
        """Context in which a session for evaluation is opened or runs, beside that of training.

        Raises:
          UserError: the device refuses it.
        """
        try:
            yield
        except (tf.errors.InternalError, tf.errors.ResourceExhaustedError, RuntimeError) as error:
            if self.evaluates_on_cpu:
                raise
            raise UserError('--eval_accelerator=npu: the NPU refuses a session for evaluation '
                            f'({first_line(error)}); use --eval_accelerator=cpu.') from error

    def write_graph(self, graph, name):
        """Does nothing: the device writes the graphs for --npu_dump_graph."""

    # Estimators ----------------------------------------------------------------------------------

    def _estimator(self, model_fn, params, iterations_per_loop):
        run = self.config.run
        config = self._bridge.NPURunConfig(
            model_dir=run.model_dir,
            iterations_per_loop=iterations_per_loop,
            tf_random_seed=self.config.data.random_seed,
            # A hook of the run saves; None would be a hook that saves every 100 steps (section 2).
            save_checkpoints_steps=0,
            # The progress hook writes summaries: the device compiles a graph for each set of
            # fetches.
            save_summary_steps=0,
            log_step_count_steps=None,
            session_config=_session_config(),
            **self._settings)
        return self._bridge.NPUEstimator(model_fn, config=config, params=params)

    @property
    def _waits_for_evaluation(self):
        """Whether other ranks wait in their next step while rank 0 evaluates."""
        return self.world_size > 1 and self.config.trains and self.config.evaluates

    @property
    def _loss_scale(self):
        """The loss scale as text: 'none', 'dynamic' or a number."""
        mode = precision.of(self._settings)
        # float16 needs loss scaling (section 7).
        default = 'dynamic' if mode.makes_float16 else 'none'
        return self.config.runtime.loss_scale or default

    def _loss_scale_manager(self):
        if self._loss_scale == 'dynamic':
            return self._bridge.ExponentialUpdateLossScaleManager(**_DYNAMIC_LOSS_SCALE)
        return self._bridge.FixedLossScaleManager(loss_scale=float(self._loss_scale))

    # Checked and set before the first graph ------------------------------------------------------

    def _check_release(self):
        if os.environ.get('CM_WORKER_SIZE') and (
                _ARGUMENT_SINCE_R1_11
                not in inspect.signature(self._bridge.NPURunConfig).parameters):
            raise UserError('CM_WORKER_SIZE is set, but the npu_bridge of this machine needs '
                            'RANK_SIZE and RANK_TABLE_FILE.')
        if self.world_size > 1 and os.environ.get('CM_WORKER_SIZE') and not self._averages():
            raise UserError('CM_WORKER_SIZE is set, but the npu_bridge of this machine averages '
                            'gradients by RANK_SIZE only; use it and RANK_TABLE_FILE.')

    def _averages(self):
        """Returns whether NPUDistributedOptimizer averages gradients in this environment.

        It reads RANK_SIZE; whether CM_WORKER_SIZE reaches it is not known (section 6).
        """
        with tf.Graph().as_default():
            weight = tf.get_variable('weight', [])
            (gradient, _), = self._bridge.NPUDistributedOptimizer(
                tf.train.GradientDescentOptimizer(1.0)).compute_gradients(2.0 * weight)
        return '_Allreduce/' in gradient.name

    def _say_what_to_expect(self):
        settings = self.config.runtime
        if settings.use_async_checkpointing:
            logging.info('--use_async_checkpointing: variables are on the NPU, which is busy while '
                         'a step runs; checkpoints are saved between steps.')
        if self.config.trains and self.config.evaluates and (
                settings.npu_dump_data or settings.over_dump):
            logging.warning('Huawei advises against dumping where training and evaluation take '
                            'turns; --mode=train avoids it.')

    def _set_overflow_mode(self):
        """Sets how the device overflows, before its first session (section 7)."""
        mode, set_mode = self.config.runtime.overflow_mode, self._bridge.set_device_sat_mode
        if mode == 'auto':
            if set_mode:
                logging.info('--overflow_mode=auto: numbers overflow as the device is set.')
        elif set_mode is None:
            raise UserError(f'--overflow_mode={mode} is not known to the npu_bridge of this '
                            'machine; leave it out or install a later CANN.')
        else:
            set_mode(_OVERFLOW_MODES[mode])

    def _set_environment(self):
        """Sets the variables that the engine reads when it builds the first graph (section 10)."""
        settings = self.config.runtime
        if self._waits_for_evaluation:
            npu_env.set_hccl_timeout(_EVALUATION_TIMEOUT_SECS[settings.eval_accelerator])
        if settings.npu_dump_graph:
            os.environ.setdefault('DUMP_GE_GRAPH', '2')
            os.environ.setdefault('DUMP_GRAPH_LEVEL', '2')
            os.environ['DUMP_GRAPH_PATH'] = make_rank_dir(settings.graph_dir, self.rank)
        if settings.npu_auto_tune:
            os.environ.setdefault('TUNE_BANK_PATH', make_rank_dir(settings.tune_dir, self.rank))
            os.environ.setdefault('ENABLE_TUNE_BANK', 'True')


def _of_rank(config, rank, world_size):
    suffix = f'_rank_{rank}' if rank else ''
    run = config.run
    return dataclasses.replace(
        config, num_ranks=world_size,
        run=dataclasses.replace(run, model_dir=run.model_dir + suffix))


def _session_config():
    """Returns a new ConfigProto, since NPUEstimator writes into it (section 4)."""
    config = tf.ConfigProto(allow_soft_placement=True)
    rewriting = config.graph_options.rewrite_options
    # Grappler must not fuse operators before the adapter sees them (section 4).
    rewriting.remapping = 2            # RewriterConfig.OFF
    rewriting.memory_optimization = 2
    return config
