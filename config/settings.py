"""The tables of all settings of a training run: one dataclass a group, one field a setting.

A field's name, default and help are those of its flag; `config.run_config` makes the flags and
`config.checks` checks the values. To add a setting, add its row to the table of its group and use
it where `Config` arrives.
"""
import dataclasses
from typing import Optional
from typing import get_type_hints

from common.image_sizes import WrittenSize
from config.data_settings import DataConfig
from config.model_settings import ModelConfig
from config.optimization_settings import OptimizationConfig
from config.run_settings import RunConfig
from config.runtime_settings import RuntimeConfig

GROUPS = {'data': DataConfig, 'model': ModelConfig, 'optimization': OptimizationConfig,
          'run': RunConfig, 'runtime': RuntimeConfig}

# Theme -> the settings that one needs first, which --help of main.py shows.
FIRST = {
    'Data': ('data_dir', 'batch_size', 'augment_name', 'mixup_alpha', 'use_cache'),
    'Network': ('model_name', 'input_image_size', 'num_label_classes', 'init_checkpoint', 'freeze'),
    'Training': ('mode', 'model_dir', 'train_epochs', 'optimizer', 'base_learning_rate',
                 'weight_decay', 'steps_per_eval'),
    'Device': ('accelerator', 'precision_mode', 'iterations_per_loop')}


def rows():
    """Yields (group name, dataclass field, value type) of every setting."""
    for group, kind in GROUPS.items():
        types = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            declared = types[field.name]
            # Optional[X] is Union[X, None], and a size a Union itself.
            kind = WrittenSize if declared == Optional[WrittenSize] else getattr(
                declared, '__args__', (declared,))[0]
            yield group, field, kind


def by_group():
    """Returns group name -> the dataclass fields of its settings, in order."""
    return {name: dataclasses.fields(kind) for name, kind in GROUPS.items()}
