"""Runs a trained network on evaluation images: predictions, mistakes and routing statistics."""
import contextlib
from typing import Any
from typing import Dict
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf

from analysis import experts
from checkpoints import restore
from common.errors import UserError
import efficientnet_builder
import model_builder_factory


def routing_statistics(checkpoint, images, model_name, override_params, normalization=None):
    """Returns routing statistics of a trained network on the first batch of evaluation images.

    Args:
      checkpoint: path prefix of the checkpoint.
      images: `ImageNetInput` for evaluation.
      model_name: name of a model with CondConv blocks.
      override_params: see `efficientnet_builder.get_model_params`.
      normalization: see `model_builder_factory.get_model_builder`.

    Returns:
      dict of 'checkpoint', 'weights' ('ema' or 'raw'), 'num_images', 'dead_below', 'num_dead'
      (block -> number of dead experts) and 'experts', a list with a record for each expert of each
      block, see `experts.describe`.

    Raises:
      UserError: the checkpoint cannot be restored, or an image cannot be read.
    """
    with _batches(checkpoint, images, model_name, override_params, normalization) as batches:
        batch = next(batches)
    records = [record for block, values in batch.routing.items()
               for record in experts.describe(block, values)]
    return {'checkpoint': checkpoint, 'weights': _weights_of(checkpoint),
            'num_images': len(batch.labels), 'dead_below': experts.DEAD_BELOW,
            'num_dead': {block: sum(record['is_dead'] for record in records
                                    if record['block'] == block) for block in batch.routing},
            'experts': records}


class Mistake(NamedTuple):
    """A misclassified image.

    Attributes:
      pixels: uint8 [height, width, 3], the input of the network before normalization.
      label, predicted: the true and the predicted class.
      probability: probability of the predicted class.
      label_probability: probability of the true class.
    """
    pixels: Any
    label: int
    predicted: int
    probability: float
    label_probability: float


class Examination(NamedTuple):
    """Results of a trained network on evaluation images.

    Attributes:
      weights: 'ema' or 'raw', the kind of weights that was used.
      num_images: number of images.
      mistakes: list of `Mistake`, the most confident first.
      class_images: int [classes], number of images of each class.
      routing: dict of block -> float [classes, experts], mean routing weights of each class.
      experts: list of records, see `experts.describe`.
    """
    weights: str
    num_images: int
    mistakes: list
    class_images: Any
    routing: Dict[str, Any]
    experts: list


def examine(checkpoint, images, model_name, override_params, num_mistakes,
            normalization=None, class_activation=efficientnet_builder.SOFTMAX):
    """Returns the `Examination` of all `images`, with up to `num_mistakes` mistakes.

    The other arguments and the errors are those of `routing_statistics`, but the model may be one
    without CondConv, which has no routing. `class_activation` determines the probabilities, see
    `efficientnet_builder.Family.predictions`.
    """
    mistakes, labels, routing = [], [], {}
    with _batches(checkpoint, images, model_name, override_params, normalization,
                  class_activation) as batches:
        for batch in batches:
            labels.append(batch.labels)
            for block, values in batch.routing.items():
                routing.setdefault(block, []).append(values)
            mistakes = sorted(mistakes + list(_mistakes(batch)),
                              key=lambda mistake: -mistake.probability)[:num_mistakes]
    labels = np.concatenate(labels)
    routing = {block: np.concatenate(parts) for block, parts in routing.items()}
    is_of_class = np.eye(images.num_classes)[labels]
    class_images = is_of_class.sum(0)
    means = {block: is_of_class.T @ weights / np.maximum(class_images, 1)[:, np.newaxis]
             for block, weights in routing.items()}
    return Examination(
        _weights_of(checkpoint), len(labels), mistakes, class_images.astype(int), means,
        [expert for block, weights in routing.items()
         for expert in experts.describe(block, weights)])


def _mistakes(batch):
    for index in np.flatnonzero(batch.classes != batch.labels):
        probabilities, label = batch.probabilities[index], batch.labels[index]
        yield Mistake(np.clip(batch.pixels[index] + 0.5, 0, 255).astype(np.uint8), int(label),
                      int(batch.classes[index]), float(probabilities.max()),
                      float(probabilities[label]))


class _Batch(NamedTuple):
    """A batch of images with the outputs of the network, without padding examples."""
    pixels: Any
    labels: Any
    classes: Any
    probabilities: Any
    routing: Dict[str, Any]


@contextlib.contextmanager
def _batches(checkpoint, images, model_name, override_params, normalization=None,
             class_activation=efficientnet_builder.SOFTMAX):
    """Yields an iterator over the `_Batch`es of `images`, evaluated with a checkpoint."""
    images.check_lengths()
    images.check_first_records()
    builder = model_builder_factory.get_model_builder(model_name, normalization)
    with tf.Graph().as_default(), tf.Session() as session:
        pixels, labels = tf.data.make_one_shot_iterator(images.dataset()).get_next()
        logits, endpoints = builder.build_model(
            builder.normalize(pixels), model_name, training=False, override_params=override_params)
        try:
            restore.weights_saver(_weights_of(checkpoint), checkpoint).restore(
                session, checkpoint)
        except tf.errors.OpError as error:
            raise UserError(f'{checkpoint}: corrupt, or its variables are not those of '
                            f'{model_name} ({type(error).__name__}); name another checkpoint.'
                            ) from error
        predictions = builder.predictions(logits, class_activation)
        fetches = [pixels, labels['label'], predictions['classes'], predictions['probabilities'],
                   experts.routing_weights(endpoints), labels['weight']]
        yield _run_all(session, fetches, images)


def _run_all(session, fetches, images):
    while True:
        try:
            pixels, labels, classes, probabilities, routing, weight = session.run(fetches)
        except tf.errors.OutOfRangeError:
            return
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            bad_record = next(images.find_bad_records(), None)
            if not bad_record:
                raise
            raise UserError(str(bad_record)) from error
        is_image = weight > 0
        yield _Batch(pixels[is_image], labels[is_image], classes[is_image], probabilities[is_image],
                     {block: values[is_image] for block, values in routing.items()})


def _weights_of(checkpoint):
    return restore.held_weights(checkpoint)[-1]
