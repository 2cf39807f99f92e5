"""The settings of what the network is."""
import dataclasses
from typing import Optional

from config import setting
import efficientnet_builder
import model_builder_factory


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What the network is. Two runs can share a model_dir only if all of this is equal."""
    model_name: str = setting.row(
        'efficientnet-condconv-b0-8e', 'The network.', choices=model_builder_factory.MODEL_NAMES)
    num_label_classes: Optional[int] = setting.row(
        None, "Classes; default: dataset_info.json's, else 1000. 1001 adds a background class 0.",
        derived=lambda config, dataset: dataset.num_classes, at_least=2,
        at_most=setting.LARGEST_NUM_CLASSES)
    width_coefficient: Optional[float] = setting.row(
        None, "Scales the number of channels; default: the model's own.", above=0, at_most=20)
    depth_coefficient: Optional[float] = setting.row(
        None, "Scales the number of layers; default: the model's own.", above=0, at_most=20)
    normalization: Optional[str] = setting.row(
        None, "How images are normalized; default: the model's own way. advprop: to [-1, 1], as "
        'networks that were trained with AdvProp want. --advprop_preprocessing is another name for '
        'it.',
        choices=tuple(efficientnet_builder.NORMALIZATIONS))
