"""Collects the tables of all settings: one dataclass per group, one field per setting.

The name, default and help text of a field are those of its flag. `config.run_config` defines the
flags and `config.checks` validates the values. To add a setting, add a row to the table of its
group and read it from `Config`.
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

# Theme -> the most important settings, which main.py --help shows.
FIRST = {
    'Data': ('data_dir', 'batch_size', 'augment_name', 'mixup_alpha', 'use_cache'),
    'Network': ('model_name', 'input_image_size', 'num_label_classes', 'init_checkpoint', 'freeze'),
    'Training': ('mode', 'model_dir', 'train_epochs', 'optimizer', 'base_learning_rate',
                 'weight_decay', 'steps_per_eval'),
    'Device': ('accelerator', 'precision_mode', 'iterations_per_loop')}


def rows():
    """Yields (group name, dataclass field, value type) for every setting."""
    for group, kind in GROUPS.items():
        types = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            declared = types[field.name]
            # Optional[X] is Union[X, None]; WrittenSize is itself a Union.
            kind = WrittenSize if declared == Optional[WrittenSize] else getattr(
                declared, '__args__', (declared,))[0]
            yield group, field, kind


def by_group():
    """Returns a dict of group name -> dataclass fields of its settings, in order."""
    return {name: dataclasses.fields(kind) for name, kind in GROUPS.items()}
