"""The settings of the network architecture."""
import dataclasses
from typing import Optional

from config import setting
import efficientnet_builder
import model_builder_factory


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network architecture. All runs in one model_dir must have equal model settings."""
    model_name: str = setting.row(
        'efficientnet-condconv-b0-8e', 'Name of the network.',
        choices=model_builder_factory.MODEL_NAMES)
    num_label_classes: Optional[int] = setting.row(
        None, 'Number of classes; default: the number in dataset_info.json, else 1000. 1001 adds a '
        'background class 0.',
        derived=lambda config, dataset: dataset.num_classes, at_least=2,
        at_most=setting.LARGEST_NUM_CLASSES)
    width_coefficient: Optional[float] = setting.row(
        None, "Multiplier of the number of channels; default: the model's own.", above=0,
        at_most=20)
    depth_coefficient: Optional[float] = setting.row(
        None, "Multiplier of the number of layers; default: the model's own.", above=0, at_most=20)
    normalization: Optional[str] = setting.row(
        None, "How images are normalized; default: the model's own way. advprop: to [-1, 1], as "
        'networks trained with AdvProp require. --advprop_preprocessing is another name for '
        '--normalization=advprop.',
        choices=tuple(efficientnet_builder.NORMALIZATIONS))
