"""Translates the options of test/train_*.sh into flags of main.py."""
import os

# Defaults of main.py and of the recipes, repeated here for the launcher's --help; tests compare.
DEFAULT_MODEL_NAME = 'efficientnet-condconv-b0-8e'
DEFAULT_BATCH_SIZE = 128
DEFAULT_EPOCHS = 350
RECIPE_BATCH_SIZE = 256
# Kind of script -> the mode of main.py, unless an option says. recipes/performance.flags has its.
MODES = {'full': 'train_and_eval', 'performance': 'train'}

# Option -> flag of main.py.
_FLAGS = {
    'model_name': 'model_name',
    'mode': 'mode',
    'batch_size': 'batch_size',
    'train_steps': 'train_steps',
    'train_epochs': 'train_epochs',
    'learning_rate': 'base_learning_rate',
    'loss_scale': 'loss_scale',
    'ckpt_path': 'init_checkpoint',
    'precision_mode': 'precision_mode',
    'over_dump': 'over_dump',
    'data_dump_flag': 'npu_dump_data',
    'data_dump_step': 'dump_step',
    'profiling': 'npu_profiling',
    'autotune': 'npu_auto_tune',
}
# Option -> flag of the directory for its results, and that directory's name in --output_path.
_FOLDERS = {
    'over_dump': ('dump_dir', 'overflow_dump'),
    'data_dump_flag': ('dump_dir', 'data_dump'),
    'profiling': ('profiling_dir', 'profiling'),
    'autotune': ('tune_dir', 'tuning'),
}
# The same number is in recipes/performance.flags.
_MOST_STEPS_PER_LOOP = 100
_MOST_STEPS_PER_LOG = 100


def compose(kind, options, root, output_dir, model_dir, is_on_npus):
    """Returns the list of flags of main.py; of two of the same name the later one wins.

    Args:
      kind: 'full' or 'performance'.
      options: `LaunchOptions`.
      root: path of the repository.
      output_dir: folder for what the devices leave, such as dumps.
      model_dir: folder of the run.
      is_on_npus: whether the ranks run on NPUs.
    """
    recipe = _recipe_path(root, options.model_name or DEFAULT_MODEL_NAME)
    flags = [f'--flagfile={recipe}'] * os.path.isfile(recipe)
    flags += [f'--data_dir={options.data_path}', f'--model_dir={model_dir}']
    flags.append(f"--accelerator={'npu' if is_on_npus else 'stock'}")
    if kind == 'performance':
        flags.append(f"--flagfile={_recipe_path(root, 'performance')}")
        if options.train_steps:
            # Ten loops or more give enough measurements. No checkpoint is saved before the end.
            loop = min(max(int(options.train_steps) // 10, 1), _MOST_STEPS_PER_LOOP)
            num_loops = -(-int(options.train_steps) // loop)
            flags += [f'--iterations_per_loop={loop}',
                      f'--save_checkpoints_steps={num_loops * loop}']
    else:
        flags.append(f'--mode={MODES[kind]}')
    if options.train_steps:
        # Ten measurements or more, because the first one is discarded.
        every_steps = min(max(int(options.train_steps) // 10, 1), _MOST_STEPS_PER_LOG)
        flags.append(f'--log_step_count_steps={every_steps}')
    for name, flag in _FLAGS.items():
        if getattr(options, name):
            flags.append(f'--{flag}={getattr(options, name)}')
    # Without --eval_once, --mode=eval follows a live run until that ends.
    flags += ['--eval_once'] * (options.mode == 'eval')
    for name, (flag, folder) in _FOLDERS.items():
        if getattr(options, name):
            flags.append(f'--{flag}={os.path.join(output_dir, folder)}')
    return [*flags, *options.main_flags]


def _recipe_path(root, model_name):
    prefix = 'efficientnet-'
    stem = model_name[len(prefix):] if model_name.startswith(prefix) else model_name
    return os.path.join(root, 'recipes', f"{stem.replace('-', '_')}.flags")
