"""The settings of the run: mode, duration, checkpoints, logging, evaluation and outputs."""
import dataclasses
from typing import Optional

from checkpoints import best
from config import setting

# Values of --mode.
TRAIN, EVAL, TRAIN_AND_EVAL, LR_RANGE = MODES = 'train', 'eval', 'train_and_eval', 'lr_range'


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The run: mode, duration, checkpoints, logging, evaluation and outputs."""
    mode: str = setting.row(
        TRAIN_AND_EVAL, 'What the run does; lr_range suggests a learning rate from a short '
        'training run in a separate directory.', choices=MODES)
    model_dir: str = setting.row(
        '', 'Directory of checkpoints and results; training resumes from its newest checkpoint.')
    init_checkpoint: str = setting.row(
        '', 'Initial weights of a new run: a checkpoint, a directory with checkpoints (the newest '
        'is used), or a weight file (.safetensors, .pth, .tar.gz). Averaged weights are preferred '
        'if present. Ignored once model_dir has a checkpoint.')
    train_steps: Optional[int] = setting.row(
        None, 'Total number of training steps; default: the number of steps in --train_epochs.',
        at_least=1)
    train_epochs: Optional[float] = setting.row(
        None, 'Total number of training epochs; default: 350, as in the published recipe.',
        derived=lambda config, dataset: None if config.run.train_steps else 350.0,
        above=0, at_most=1000000)
    lr_range_steps: int = setting.row(
        100, 'lr_range: number of steps from the lowest to the highest learning rate.', at_least=20,
        at_most=100000)
    max_hours: Optional[float] = setting.row(
        None, 'Stop after this many hours, with a checkpoint and exit code 0; the same command '
        'resumes from there.', above=0, at_most=1000000)
    stop_at: Optional[str] = setting.row(
        None, 'Stop as with --max_hours, but at a given date and time such as 2026-11-24T18:00; '
        'local time unless it ends with an offset such as +08:00 or with Z.')
    steps_per_eval: Optional[int] = setting.row(
        None, 'train_and_eval: number of steps between evaluations; default: 5 epochs.',
        at_least=1)
    save_checkpoints_steps: Optional[int] = setting.row(
        None, 'Number of steps between checkpoints; default: 1000, unless --save_checkpoints_secs '
        'is set.',
        derived=lambda config, dataset: None if config.run.save_checkpoints_secs else 1000,
        at_least=1)
    save_checkpoints_secs: Optional[float] = setting.row(
        None, 'Seconds between checkpoints, instead of --save_checkpoints_steps.', above=0)
    keep_checkpoint_max: int = setting.row(
        5, 'Maximum number of checkpoints to keep.', at_least=1)
    log_step_count_steps: int = setting.row(
        100, "Number of steps between 'train' events in results.jsonl and between progress lines. "
        'Progress lines are at most 30 seconds apart.', at_least=1)
    quiet: bool = setting.row(
        False, 'Print only errors and the final line, for use in scripts.')
    log_input_stall: bool = setting.row(
        False, 'Report in progress lines and results the share of time for which the device '
        'waited for input.')
    log_gradient_norm: bool = setting.row(
        False, 'Log the gradient norm even if the loss is scaled and the optimizer detects '
        'overflows itself. In this case the norm costs one additional kernel per variable.')
    save_summary_steps: int = setting.row(
        1000, 'Number of steps between TensorBoard summaries of the experts; scalars are written '
        'with each progress line.', at_least=1)
    skip_host_call: bool = setting.row(False, 'Write no training summaries for TensorBoard.')
    eval_name: Optional[str] = setting.row(
        None, 'Name of the evaluation in results.jsonl and TensorBoard.')
    eval_once: bool = setting.row(
        False, 'eval: evaluate the newest checkpoint and exit, instead of evaluating each new one '
        'up to --train_steps.')
    eval_timeout: Optional[int] = setting.row(
        None, 'eval: number of seconds to wait for a new checkpoint before giving up; default: no '
        'limit.',
        at_least=1)
    archive_ckpt: bool = setting.row(
        True, 'Keep the checkpoint with the best --best_metric in model_dir/archive. Evaluations '
        'without --eval_name take precedence, then those with the most images.')
    best_metric: str = setting.row(
        best.TOP_1, 'Metric that selects the best evaluation. top_1: highest top-1 accuracy; loss: '
        'lowest cross entropy; macro_f1: highest mean F1 over the classes.', choices=best.METRICS)
    early_stopping_evals: Optional[int] = setting.row(
        None, 'train_and_eval: stop training after this many consecutive evaluations without an '
        'improvement of --best_metric; default: train to the last step.', at_least=1)
    per_class_csv: str = setting.row(
        '', 'CSV file to which each evaluation writes precision, recall, F1 and support of each '
        'class, for the averaged weights if present.')
    export_dir: str = setting.row(
        '', 'Directory to which a SavedModel is written at the end of training.')
