"""The settings of what a run runs on, and how."""
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
    """What the run runs on, and how. None is what the runtime does by itself."""
    accelerator: str = setting.row(
        'auto', 'npu: Ascend, through npu_bridge; stock, or host: stock TensorFlow; auto: npu if '
        'npu_bridge is installed.', choices=('auto', 'npu', 'stock', 'host'))
    eval_accelerator: str = setting.row(
        'npu', 'NPU: where evaluations run. npu: in a second session on the device; cpu: on the '
        'CPU of the server, which is slower and takes no memory of the device.',
        choices=('npu', 'cpu'))
    iterations_per_loop: int = setting.row(
        1, 'NPU: steps per session.run. Progress lines, checkpoints and evaluations come at the '
        'first multiple that is due; the last step is exact all the same.', at_least=1)
    precision_mode: Optional[str] = setting.row(
        None, 'Which tensors may be float16 or bfloat16; default: allow_mix_precision on an NPU, '
        'float32 elsewhere. On a GPU allow_mix_precision rewrites the graph.',
        choices=PRECISION_MODES)
    precision_mode_v2: Optional[str] = setting.row(
        None, 'NPU: what releases from r1.13 on have in place of --precision_mode.',
        choices=tuple(precision.MODES_V2))
    loss_scale: Optional[str] = setting.row(
        None, 'none, dynamic, or a number from 1 on; default: dynamic where the precision mode may '
        'make tensors float16.')
    overflow_mode: str = setting.row(
        'auto', 'NPU, from r1.13 on: how numbers overflow. saturate: to the largest number; '
        'inf_nan: to Inf and NaN, recommended on Atlas A2; auto: as the device is set.',
        choices=('auto', 'saturate', 'inf_nan'))
    modify_mixlist: Optional[str] = setting.row(
        None, 'NPU: JSON file that moves operators between the lists of allow_mix_precision, or '
        'none; default: recipes/npu_mixlist.json, where the release knows such files.')
    npu_dump_data: bool = setting.row(False, 'Dump the tensors of --dump_step to --dump_dir.')
    over_dump: bool = setting.row(
        False, 'NPU: dump the operators that overflow to --dump_dir. Not with --npu_dump_data.')
    dump_dir: Optional[str] = setting.row(
        None, 'Folder of the dumps, one below it for each rank; default: model_dir/dump.',
        derived=_below_model_dir('dump'))
    dump_step: str = setting.row(
        '0', 'Steps to dump, like 0|5|10-20. A step of a real run takes gigabytes.')
    dump_mode: str = setting.row(
        'output', 'NPU: which tensors of an operator to dump.', choices=('input', 'output', 'all'))
    npu_profiling: bool = setting.row(
        False, 'Profile to --profiling_dir. Without an NPU: a Chrome trace every '
        '--log_step_count_steps.')
    profiling_dir: Optional[str] = setting.row(
        None, 'Folder of the profiles, one below it for each rank; default: model_dir/profiling.',
        derived=_below_model_dir('profiling'))
    npu_dump_graph: bool = setting.row(
        False, 'Write the graphs to --graph_dir: on an NPU the compiled ones, else the GraphDef.')
    graph_dir: Optional[str] = setting.row(
        None, 'Folder of the graphs, one below it for each rank; default: model_dir/graphs.',
        derived=_below_model_dir('graphs'))
    op_cache_dir: Optional[str] = setting.row(
        None, 'NPU: folder of compiled operators, which later runs need not compile again, one '
        'below it for each rank; default: beside model_dir, with _op_cache behind its name.',
        derived=lambda config, dataset: f'{config.run.model_dir}_op_cache')
    npu_option: Tuple[str, ...] = setting.row(
        (), 'NPU: NAME=VALUE, another argument of NPURunConfig in the installed release; may be '
        'repeated.')
    npu_auto_tune: bool = setting.row(
        False, 'NPU: tune the operators before the first step, which takes hours.')
    tune_dir: Optional[str] = setting.row(
        None, 'Folder of tuning results, one below it for each rank; default: model_dir/tuning.',
        derived=_below_model_dir('tuning'))
    deterministic: bool = setting.row(
        False, 'Operators give the same results each time, at a cost in speed: NPU, from CANN 6.3 '
        'on, and GPU.')
    op_select_implmode: Optional[str] = setting.row(
        None, 'NPU: which implementation of an operator to prefer.',
        choices=('high_precision', 'high_performance'))
    hcom_parallel: Optional[bool] = setting.row(
        None, 'NPU: overlap gradient exchange with computation; default: yes.')
    enable_data_pre_proc: Optional[bool] = setting.row(
        None, 'NPU: feed batches through a queue on the device; default: yes.')
    use_async_checkpointing: bool = setting.row(
        False, 'Write checkpoints in a thread, while training goes on: their variables may be a '
        'few steps apart.')
    obs_dir: str = setting.row(
        '', 'Copy model_dir and the folders above there when the run is over, failed or not.')

    def __post_init__(self):
        object.__setattr__(self, 'accelerator', accelerator_name(self.accelerator))

    @property
    def output_dirs(self):
        """Setting -> folder of what the device leaves behind, of those that the flags turn on."""
        asked = {'dump_dir': self.npu_dump_data or self.over_dump,
                 'profiling_dir': self.npu_profiling, 'graph_dir': self.npu_dump_graph,
                 'tune_dir': self.npu_auto_tune}
        return {name: getattr(self, name) for name, is_asked in asked.items() if is_asked}

    @property
    def dump_steps(self):
        """`dump_step` as a list of ranges.

        Raises:
          ValueError: it is no list of steps, or of over 100 parts, which is all an NPU takes.
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
    """Returns a value of --accelerator by its present name; earlier versions wrote host."""
    return 'stock' if value == 'host' else value
