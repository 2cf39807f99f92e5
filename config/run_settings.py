"""The settings of what is done, for how long, and what is left behind."""
import dataclasses
from typing import Optional

from checkpoints import best
from config import setting

# Values of --mode.
TRAIN, EVAL, TRAIN_AND_EVAL, LR_RANGE = MODES = 'train', 'eval', 'train_and_eval', 'lr_range'


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What is done, for how long, and what is left behind."""
    mode: str = setting.row(
        TRAIN_AND_EVAL, 'What to do; lr_range suggests a learning rate, from a short training in '
        'a folder of its own.', choices=MODES)
    model_dir: str = setting.row(
        '', 'Folder of checkpoints and results; training resumes from there.')
    init_checkpoint: str = setting.row(
        '', 'Checkpoint, folder of the newest one, or file of weights (.safetensors, .pth, .tar.gz)'
        ' that a new run starts with: the averaged weights if there are any. Without effect once '
        'model_dir has a checkpoint.')
    train_steps: Optional[int] = setting.row(
        None, 'Steps to train in all; default: --train_epochs of them.', at_least=1)
    train_epochs: Optional[float] = setting.row(
        None, 'Epochs to train in all; default: 350, the published recipe.',
        derived=lambda config, dataset: None if config.run.train_steps else 350.0,
        above=0, at_most=1000000)
    lr_range_steps: int = setting.row(
        100, 'lr_range: steps from the lowest learning rate to the highest.', at_least=20,
        at_most=100000)
    max_hours: Optional[float] = setting.row(
        None, 'End after so many hours, with a checkpoint and exit code 0; the same command goes '
        'on from there.', above=0, at_most=1000000)
    stop_at: Optional[str] = setting.row(
        None, 'End as by --max_hours, at a time of day like 2026-11-24T18:00: local time, unless '
        'an offset like +08:00 or Z follows.')
    steps_per_eval: Optional[int] = setting.row(
        None, 'train_and_eval: steps between evaluations; default: 5 epochs.', at_least=1)
    save_checkpoints_steps: Optional[int] = setting.row(
        None, 'Steps between checkpoints; default: 1000, unless --save_checkpoints_secs says when.',
        derived=lambda config, dataset: None if config.run.save_checkpoints_secs else 1000,
        at_least=1)
    save_checkpoints_secs: Optional[float] = setting.row(
        None, 'Seconds between checkpoints, in place of --save_checkpoints_steps.', above=0)
    keep_checkpoint_max: int = setting.row(5, 'Checkpoints to keep.', at_least=1)
    log_step_count_steps: int = setting.row(
        100, "Steps between 'train' events in results.jsonl, and between progress lines, which "
        'are at most 30 seconds apart.', at_least=1)
    quiet: bool = setting.row(
        False, 'Print errors and the final line only: for scripts.')
    log_input_stall: bool = setting.row(
        False, 'Progress lines and results tell the share of time for which the device waited for '
        'input.')
    log_gradient_norm: bool = setting.row(
        False, 'Compute the norm of the gradients even where the loss is scaled, and the optimizer '
        'finds overflows by itself: a kernel more for each variable.')
    save_summary_steps: int = setting.row(
        1000, 'Steps between what TensorBoard is shown of each expert; scalars come with the '
        'progress lines.', at_least=1)
    skip_host_call: bool = setting.row(False, 'Write no training summaries for TensorBoard.')
    eval_name: Optional[str] = setting.row(
        None, 'Name of the evaluation in results and TensorBoard.')
    eval_once: bool = setting.row(
        False, 'eval: evaluate the last checkpoint and end, in place of waiting for --train_steps.')
    eval_timeout: Optional[int] = setting.row(
        None, 'eval: seconds to wait for a new checkpoint before giving up; default: no limit.',
        at_least=1)
    archive_ckpt: bool = setting.row(
        True, 'Keep the checkpoint with the best --best_metric in model_dir/archive: of '
        'evaluations without --eval_name, if there are any, and of the most images.')
    best_metric: str = setting.row(
        best.TOP_1, 'What makes an evaluation the best: top_1 accuracy; loss, the smallest cross '
        'entropy; macro_f1, the mean F1 over the classes.', choices=best.METRICS)
    early_stopping_evals: Optional[int] = setting.row(
        None, 'train_and_eval: end training after so many evaluations in a row whose '
        '--best_metric is no better than before; default: train to the last step.', at_least=1)
    per_class_csv: str = setting.row(
        '', 'Write precision, recall, F1 and support of each class to this file at each '
        'evaluation: of the averaged weights, if there are any.')
    export_dir: str = setting.row('', 'Write a SavedModel there at the end of training.')
