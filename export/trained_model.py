"""What is exported: a checkpoint, and all that its network needs to be built."""
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
      weights: which of them, `checkpoints.EMA` or `checkpoints.RAW`.
      model_name: the network.
      image_size: of its input; an int for a square.
      overrides: the network's `override_params`.
      normalization: of its images, None for the model's own.
      class_activation: what makes probabilities of its logits, one of
        `efficientnet_builder.CLASS_ACTIVATIONS`.
      class_names: one a class, or empty.
      data_dir: folder of the data set that the run was trained on, or ''.
      shards: `layout.Layout` of its shards.
      endpoint_name: an endpoint of the network to export beside its predictions, or None.
      max_image_pixels: of the images that the run reads.
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
        """Height, width and channels of its input."""
        return (*ImageSize.of(self.image_size), 3)

    @property
    def step(self):
        return store.step_of(self.checkpoint)

    @property
    def description(self):
        """What a user of the exported file has to know: JSON values by name."""
        return {'model_name': self.model_name, 'step': self.step, 'weights': self.weights,
                'image_size': ImageSize.of(self.image_size).written,
                'resize_method': self.builder.resize_method, 'normalization': self.normalization,
                'class_activation': self.class_activation,
                'class_names': list(self.class_names)}

    def named(self, class_names, path):
        """The same model with other names of its classes, those in the file `path`.

        Raises:
          UserError: they are not as many as its classes.
        """
        num_classes = self.overrides['num_classes']
        if len(class_names) != num_classes:
            raise UserError(f'--class_names={path} has {len(class_names)} names, and the model has '
                            f'{num_classes} classes; name another file.')
        return dataclasses.replace(self, class_names=tuple(class_names))

    def outputs(self, images, **overrides):
        """Builds the network on raw images; returns its predictions by name.

        Args:
          images: [batch, height, width, 3], RGB in [0, 255], of any number type.
          **overrides: more `override_params`.

        Returns:
          dict of 'classes' int32 [batch], 'probabilities' and 'logits' float32 [batch, classes],
          and the endpoint, whose slashes become underscores.
        """
        logits, endpoints = self.builder.build_model(
            self.builder.normalize(images), self.model_name, training=False,
            override_params={**self.overrides, **overrides})
        outputs = self.builder.predictions(logits, self.class_activation)
        if self.endpoint_name:
            if self.endpoint_name not in endpoints:
                raise UserError(f'--endpoint_name={self.endpoint_name} is no endpoint of '
                                f"{self.model_name}; choose one of {', '.join(endpoints)}.")
            name = self.endpoint_name.replace('/', '_')
            outputs[name] = tf.identity(endpoints[self.endpoint_name], name=name)
        return outputs

    def restore(self, session):
        """Gives the network's variables in the session's graph the checkpoint's weights."""
        restore.weights_saver(self.weights, self.checkpoint).restore(session, self.checkpoint)


def from_checkpoint(checkpoint, model_name=None, num_classes=None, image_size=None,
                    enable_ema=True, endpoint_name=None, normalization=None):
    """The `TrainedModel` of a checkpoint.

    `config.network` finds whatever is None.

    Raises:
      UserError: what is given contradicts the checkpoint, or that is damaged.
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
    """The `TrainedModel` of a checkpoint of the run that `config` describes."""
    return TrainedModel(
        checkpoint=checkpoint, weights=weights, model_name=config.model.model_name,
        image_size=config.image_size,
        overrides={**config.model_overrides, **efficientnet_builder.PORTABLE},
        normalization=config.model.normalization,
        class_activation=config.optimization.class_activation,
        class_names=config.class_names, data_dir=config.data.data_dir, shards=config.data.layout,
        max_image_pixels=config.data.max_image_pixels)
