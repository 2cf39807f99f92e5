"""Advice for an unknown flag: a flag of Google's or Huawei's scripts, or a typo.

Standard library only, because the launcher imports it.
"""
import difflib
import fnmatch

# Flags of Google's scripts that only concern TPUs.
_TPU = ('use_tpu', 'tpu', 'tpu_name', 'tpu_zone', 'tpu_job_name', 'master', 'eval_master',
        'gcp_project', 'bigtable_*', 'use_bfloat16', 'bfloat16', 'num_replicas', 'num_cores',
        'num_shards', 'batch_norm_batch_size', 'export_to_tpu', 'per_host_input*', 'xla', 'hvd')

# Flag of Google's or Huawei's scripts -> our flags of the same meaning; a program has at most one.
_REPLACED_BY = {
    'use_bfloat16': ('precision_mode',),
    'bfloat16': ('precision_mode',),
    'precision': ('precision_mode',),
    'resume_checkpoint': ('init_checkpoint',),
    'condconv_num_experts': ('model_name',),
    'profile_every_n_steps': ('npu_profiling',),
    'max_train_steps': ('train_steps',),
    'num_train_steps': ('train_steps',),
    'max_steps': ('train_steps',),
    'epochs': ('train_epochs',),
    'num_epochs': ('train_epochs',),
    'max_epochs': ('train_epochs',),
    'learning_rate': ('base_learning_rate',),
    'lr': ('base_learning_rate',),
    'enable_lars': ('optimizer',),
    'num_classes': ('num_label_classes',),
    'input_image_size': ('image_size',),
    'image_size': ('input_image_size',),
    'post_quantize': ('quantize',),
    'ckpt_dir': ('checkpoint', 'model_dir'),
    'labels_map_file': ('class_names',),
    'imagenet_eval_glob': ('data_dir',),
    'imagenet_eval_label': ('data_dir',),
    'num_images': ('num_eval_images',),
    'data_path': ('data_dir',),
    'data_url': ('data_dir', 'data_path'),
    'output_path': ('model_dir',),
    'result': ('model_dir', 'output_path'),
    'train_url': ('model_dir', 'output_path'),
    'ckpt_path': ('init_checkpoint', 'checkpoint'),
    'network_name': ('model_name',),
    'network': ('model_name',),
    'profiling': ('npu_profiling',),
    'autotune': ('npu_auto_tune',),
    'data_dump_flag': ('npu_dump_data',),
    'data_dump_step': ('dump_step',),
    'data_dump_path': ('dump_dir',),
    'steps_per_loop': ('iterations_per_loop',),
    'obs_url': ('obs_dir',),
}
# Flag of theirs -> our flag with other values, and advice.
_EXPLAINED = {
    'drop_connect_rate': ('survival_prob', 'use --survival_prob, which is 1 - drop_connect_rate'),
    'include_background_label': (
        'num_label_classes', 'use --num_label_classes with one class more: 1001 for ImageNet'),
    'momentum': ('optimizer', 'leave it out: it is 0.9, as in the published scripts'),
}
# The least similarity (difflib's ratio) of a suggestion.
_SIMILARITY = 0.8


def replacements():
    """Returns a dict of each flag of Google's or Huawei's scripts -> what to use in its place."""
    named = {name: ' or '.join(f'--{each}' for each in ours)
             for name, ours in _REPLACED_BY.items()}
    return {**named, **{name: advice for name, (_, advice) in _EXPLAINED.items()}}


def refusal(name, known):
    """Returns the sentence that refuses a flag.

    Args:
      name: of the flag, without dashes.
      known: names of the program's own flags.
    """
    # --nouse_tpu is the same flag as --use_tpu.
    names = [name] + [name[2:]] * name.startswith('no')
    for each in names:
        ours, advice = _EXPLAINED.get(each, (None, ''))
        if ours in known:
            return f'--{name}: no such flag; {advice}.'
        for replacement in _REPLACED_BY.get(each, ()):
            if replacement in known:
                return f'--{name}: no such flag; use --{replacement} instead.'
    if any(fnmatch.fnmatchcase(each, pattern) for each in names for pattern in _TPU):
        return f'--{name}: a flag for TPUs; leave it out.'
    longer = sorted(each for each in known if len(name) > 3 and each.startswith(f'{name}_'))
    similar = longer or difflib.get_close_matches(name, sorted(known), n=2, cutoff=_SIMILARITY)
    if similar:
        return f"--{name}: no such flag; did you mean --{' or --'.join(similar)}?"
    return f'--{name}: no such flag.'
