"""Determines the network of a checkpoint, for evaluation, prediction, exports and inspection."""
import dataclasses
from typing import Any
from typing import Dict
from typing import Optional

from checkpoints import restore
from common.image_sizes import ImageSize
from config import run_config
import efficientnet_builder
import model_builder_factory


@dataclasses.dataclass(frozen=True)
class Network:
    """The network of a checkpoint.

    Attributes:
      model_name: name of the model.
      num_classes: number of classes of the classifier.
      image_size: size of the input images.
      overrides: the `override_params` of the network.
      normalization: normalization of the images; None for the model's own.
      class_activation: the activation that turns logits into probabilities, one of
        `efficientnet_builder.CLASS_ACTIVATIONS`; SOFTMAX if there is no config.json.
      config: the `Config` of the run that saved the checkpoint, or None.
    """
    model_name: str
    num_classes: int
    image_size: ImageSize
    overrides: Dict[str, Any]
    normalization: Optional[str]
    class_activation: str
    config: Optional[run_config.Config]


def of_checkpoint(checkpoint, model_name=None, num_classes=None, image_size=None,
                  normalization=None):
    """Returns the `Network` of a checkpoint.

    Model, classes and multipliers are fixed by the weights. They come from the config.json of the
    checkpoint's run, else from the names and shapes in the checkpoint. Image size and normalization
    are the caller's choice; they default to those of the run, else of the model.

    Args:
      checkpoint: path prefix of the checkpoint.
      model_name, num_classes, image_size: values given by the user, the size in any form that
        `ImageSize.of` accepts; None if not given.
      normalization: result of `config.normalization.given`.

    Raises:
      UserError: a given value contradicts the checkpoint or its config.json, or the model cannot
        be determined.
    """
    config = run_config.of_checkpoint(checkpoint)
    if not model_name:
        model_name = config.model.model_name if config else restore.only_model(
            checkpoint, model_builder_factory.MODEL_NAMES)
    num_classes = restore.check_model(checkpoint, model_name, num_classes)
    if config:
        restore.check_model(checkpoint, model_name, config.model.num_label_classes)
        image_size = image_size or config.image_size
        if normalization is None:
            normalization = config.model.normalization
    return Network(
        model_name=model_name,
        num_classes=num_classes,
        image_size=ImageSize.of(
            image_size or model_builder_factory.get_model_input_size(model_name)),
        overrides={**(config.model_overrides if config else {'num_classes': num_classes}),
                   **efficientnet_builder.PORTABLE},
        normalization=normalization or None,
        class_activation=(config.optimization.class_activation if config
                          else efficientnet_builder.SOFTMAX),
        config=config)
