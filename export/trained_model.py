"""Describes a model to export: a checkpoint and the parameters that build its network."""
import dataclasses
from typing import Any
from typing import Dict
from typing import Optional
from typing import Tuple

import tensorflow.compat.v1 as tf

from checkpoints import restore
from checkpoints import store
from common.errors import UserError
from common.image_sizes import ImageSize
from config import network as networks
from config import settings
import efficientnet_builder
import model_builder_factory
from tfrecords import image_formats
from tfrecords import layout


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A checkpoint and its network.

    Attributes:
      checkpoint: path prefix.
      weights: `restore.EMA` or `restore.RAW`.
      model_name: name of the network.
      image_size: `ImageSize` of the input; an int for a square.
      overrides: the network's `override_params`.
      normalization: normalization of the images; None for the model's default.
      class_activation: function that turns logits into probabilities, one of
        `efficientnet_builder.CLASS_ACTIVATIONS`.
      class_names: one name per class, or empty.
      data_dir: directory of the dataset that the run was trained on, or ''.
      shards: `layout.Layout` of that dataset's shards.
      endpoint_name: endpoint of the network to export besides its predictions, or None.
      max_image_pixels: largest number of pixels of an image that the run reads.
    """
    checkpoint: str
    weights: str
    model_name: str
    image_size: ImageSize
    overrides: Dict[str, Any]
    normalization: Optional[str] = None
    class_activation: str = efficientnet_builder.SOFTMAX
    class_names: Tuple[str, ...] = ()
    data_dir: str = ''
    shards: layout.Layout = layout.DETECTED
    endpoint_name: Optional[str] = None
    max_image_pixels: int = image_formats.MAX_IMAGE_PIXELS

    @property
    def builder(self):
        return model_builder_factory.get_model_builder(self.model_name, self.normalization)

    @property
    def image_shape(self):
        """Height, width and channels of the input."""
        return (*ImageSize.of(self.image_size), 3)

    @property
    def step(self):
        return store.step_of(self.checkpoint)

    @property
    def description(self):
        """The properties that are stored beside an export, as a dict of JSON values."""
        return {'model_name': self.model_name, 'step': self.step, 'weights': self.weights,
                'image_size': ImageSize.of(self.image_size).written,
                'resize_method': self.builder.resize_method, 'normalization': self.normalization,
                'class_activation': self.class_activation,
                'class_names': list(self.class_names)}

    def named(self, class_names, path):
        """Returns the same model with other class names, read from the file `path`.

        Raises:
          UserError: the number of names differs from the number of classes.
        """
        num_classes = self.overrides['num_classes']
        if len(class_names) != num_classes:
            raise UserError(f'--class_names={path}: has {len(class_names)} names, but the model '
                            f'has {num_classes} classes; name another file.')
        return dataclasses.replace(self, class_names=tuple(class_names))

    def outputs(self, images, **overrides):
        """Builds the network on raw images; returns its predictions.

        Args:
          images: [batch, height, width, 3], RGB in [0, 255], of any numeric type.
          **overrides: more `override_params`.

        Returns:
          dict of tensors: 'classes' int32 [batch], 'probabilities' and 'logits' float32 [batch,
          classes], and the endpoint, in whose name underscores replace slashes.

        Raises:
          UserError: the network has no endpoint `endpoint_name`.
        """
        logits, endpoints = self.builder.build_model(
            self.builder.normalize(images), self.model_name, training=False,
            override_params={**self.overrides, **overrides})
        outputs = self.builder.predictions(logits, self.class_activation)
        if self.endpoint_name:
            if self.endpoint_name not in endpoints:
                raise UserError(f'--endpoint_name={self.endpoint_name}: not an endpoint of '
                                f"{self.model_name}; choose one of {', '.join(endpoints)}.")
            name = self.endpoint_name.replace('/', '_')
            outputs[name] = tf.identity(endpoints[self.endpoint_name], name=name)
        return outputs

    def restore(self, session):
        """Restores the network's variables in the session's graph from the checkpoint."""
        restore.weights_saver(self.weights, self.checkpoint).restore(session, self.checkpoint)


def from_checkpoint(checkpoint, model_name=None, num_classes=None, image_size=None,
                    enable_ema=True, endpoint_name=None, normalization=None):
    """Returns the `TrainedModel` of a checkpoint.

    Args:
      checkpoint: path prefix.
      model_name, num_classes, image_size, normalization: see `TrainedModel`; None to take the
        value from the checkpoint and its run, see `config.network`.
      enable_ema: whether to prefer the moving averages of the weights.
      endpoint_name: see `TrainedModel`.

    Raises:
      UserError: an argument contradicts the checkpoint, or the checkpoint is corrupt.
    """
    network = networks.of_checkpoint(
        checkpoint, model_name, num_classes, image_size, normalization)
    store.verify(checkpoint)
    config = network.config
    data = config.data if config else settings.DataConfig()
    weights, = restore.weights_to_use(checkpoint, [restore.EMA if enable_ema else restore.RAW])
    return TrainedModel(
        checkpoint=checkpoint,
        weights=weights,
        model_name=network.model_name,
        image_size=network.image_size,
        overrides=network.overrides,
        normalization=network.normalization,
        class_activation=network.class_activation,
        class_names=config.class_names if config else (),
        data_dir=data.data_dir,
        shards=data.layout,
        endpoint_name=endpoint_name,
        max_image_pixels=data.max_image_pixels)


def of_run(config, checkpoint, weights):
    """Returns the `TrainedModel` of a checkpoint of the run that `config` describes."""
    return TrainedModel(
        checkpoint=checkpoint, weights=weights, model_name=config.model.model_name,
        image_size=config.image_size,
        overrides={**config.model_overrides, **efficientnet_builder.PORTABLE},
        normalization=config.model.normalization,
        class_activation=config.optimization.class_activation,
        class_names=config.class_names, data_dir=config.data.data_dir, shards=config.data.layout,
        max_image_pixels=config.data.max_image_pixels)
