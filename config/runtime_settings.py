"""The settings of the device, its precision, and diagnostics such as dumps and profiles."""
import dataclasses
import os
from typing import Optional
from typing import Tuple

from config import setting
from runtime import precision

PRECISION_MODES = tuple(precision.MODES)


def _below_model_dir(folder):
    return lambda config, dataset: os.path.join(config.run.model_dir, folder)


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """The device and how it runs. None leaves a choice to the runtime."""
    accelerator: str = setting.row(
        'auto', 'Device of the run: npu is Ascend, through npu_bridge; stock, or its former name '
        'host, is stock TensorFlow on a CPU or GPU; auto is npu if npu_bridge is installed, else '
        'stock.', choices=('auto', 'npu', 'stock', 'host'))
    eval_accelerator: str = setting.row(
        'npu', 'NPU: where evaluations run. npu: in a second session on the device; cpu: on the '
        'CPU of the server, which is slower but uses no device memory.',
        choices=('npu', 'cpu'))
    iterations_per_loop: int = setting.row(
        1, 'NPU: number of steps per session.run. Progress lines, checkpoints and evaluations '
        'are delayed to the next multiple; training still ends exactly at the last step.',
        at_least=1)
    precision_mode: Optional[str] = setting.row(
        None, 'Which tensors may be float16 or bfloat16; default: allow_mix_precision on an NPU, '
        'float32 elsewhere. On a GPU, allow_mix_precision rewrites the graph.',
        choices=PRECISION_MODES)
    precision_mode_v2: Optional[str] = setting.row(
        None, 'NPU: replaces --precision_mode in npu_bridge releases from r1.13 on.',
        choices=tuple(precision.MODES_V2))
    loss_scale: Optional[str] = setting.row(
        None, 'Loss scale: none, dynamic, or a number of at least 1; default: dynamic if the '
        'precision mode allows float16, else none.')
    overflow_mode: str = setting.row(
        'auto', 'NPU, from r1.13 on: result of a numeric overflow. saturate: the largest finite '
        'number; inf_nan: Inf or NaN, recommended on Atlas A2; auto: as the device is configured.',
        choices=('auto', 'saturate', 'inf_nan'))
    modify_mixlist: Optional[str] = setting.row(
        None, 'NPU: JSON file that moves operators between the precision lists of '
        'allow_mix_precision, or none; default: recipes/npu_mixlist.json, if the release supports '
        'such files.')
    npu_dump_data: bool = setting.row(
        False, 'Dump the tensors of the steps in --dump_step to --dump_dir.')
    over_dump: bool = setting.row(
        False, 'NPU: dump operators that overflow to --dump_dir. Cannot be combined with '
        '--npu_dump_data.')
    dump_dir: Optional[str] = setting.row(
        None, 'Directory of the dumps, with a subdirectory per rank; default: model_dir/dump.',
        derived=_below_model_dir('dump'))
    dump_step: str = setting.row(
        '0', 'Steps to dump, for example 0|5|10-20. One step of a full-size model takes gigabytes.')
    dump_mode: str = setting.row(
        'output', 'NPU: which tensors of each operator to dump.',
        choices=('input', 'output', 'all'))
    npu_profiling: bool = setting.row(
        False, 'Profile the run and write the profiles to --profiling_dir. Without an NPU, a '
        'Chrome trace is written every --log_step_count_steps.')
    profiling_dir: Optional[str] = setting.row(
        None, 'Directory of the profiles, with a subdirectory per rank; default: '
        'model_dir/profiling.',
        derived=_below_model_dir('profiling'))
    npu_dump_graph: bool = setting.row(
        False, 'Write the graphs to --graph_dir: the compiled graphs on an NPU, the GraphDef '
        'elsewhere.')
    graph_dir: Optional[str] = setting.row(
        None, 'Directory of the graphs, with a subdirectory per rank; default: model_dir/graphs.',
        derived=_below_model_dir('graphs'))
    op_cache_dir: Optional[str] = setting.row(
        None, 'NPU: directory of compiled operators, with a subdirectory per rank; later runs '
        'reuse them; default: the path of model_dir followed by _op_cache.',
        derived=lambda config, dataset: f'{config.run.model_dir}_op_cache')
    npu_option: Tuple[str, ...] = setting.row(
        (), 'NPU: additional argument NAME=VALUE of NPURunConfig in the installed release; may be '
        'repeated.')
    npu_auto_tune: bool = setting.row(
        False, 'NPU: tune the operators before the first step. Tuning takes hours.')
    tune_dir: Optional[str] = setting.row(
        None, 'Directory of tuning results, with a subdirectory per rank; default: '
        'model_dir/tuning.',
        derived=_below_model_dir('tuning'))
    deterministic: bool = setting.row(
        False, 'Use deterministic operators, which are slower, on an NPU (from CANN 6.3 on) or a '
        'GPU.')
    op_select_implmode: Optional[str] = setting.row(
        None, 'NPU: which implementation of each operator to prefer.',
        choices=('high_precision', 'high_performance'))
    hcom_parallel: Optional[bool] = setting.row(
        None, 'NPU: overlap gradient exchange with computation; default: yes.')
    enable_data_pre_proc: Optional[bool] = setting.row(
        None, 'NPU: feed batches through a queue on the device; default: yes.')
    use_async_checkpointing: bool = setting.row(
        False, 'Write checkpoints in a background thread while training continues. The variables '
        'of one checkpoint may then be a few steps apart.')
    obs_dir: str = setting.row(
        '', 'Directory or URL to which model_dir is copied when the run ends, even if it failed; '
        'enabled dumps, profiles, graphs and tuning results are copied too.')

    def __post_init__(self):
        object.__setattr__(self, 'accelerator', accelerator_name(self.accelerator))

    @property
    def output_dirs(self):
        """Returns setting -> directory for each kind of device output that the flags enable."""
        asked = {'dump_dir': self.npu_dump_data or self.over_dump,
                 'profiling_dir': self.npu_profiling, 'graph_dir': self.npu_dump_graph,
                 'tune_dir': self.npu_auto_tune}
        return {name: getattr(self, name) for name, is_asked in asked.items() if is_asked}

    @property
    def dump_steps(self):
        """Returns `dump_step` as a list of ranges.

        Raises:
          ValueError: the text is not a list of steps, or has more than the 100 parts that an NPU
            supports.
        """
        parts = self.dump_step.split('|')
        if len(parts) > 100:
            raise ValueError('more than 100 parts')
        steps = []
        for part in parts:
            first, dash, last = part.partition('-')
            if not first.isdigit() or (dash and not last.isdigit()):
                raise ValueError(f'{part!r} is neither a step nor a range')
            if dash and int(last) <= int(first):
                raise ValueError(f'the range {part} does not rise')
            steps.append(range(int(first), int(last or first) + 1))
        return steps


def accelerator_name(value):
    """Returns the current name of a value of --accelerator; earlier versions wrote 'host'."""
    return 'stock' if value == 'host' else value
