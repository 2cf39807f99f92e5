"""How the CondConv blocks of a trained network use their experts."""
import numpy as np
import tensorflow.compat.v1 as tf

import model_builder_factory
from training import checkpoints
from user_error import UserError

_DEAD_BELOW = 0.01


def routing_statistics(checkpoint, images, model_name, override_params):
    """How the CondConv blocks of a trained network route the first batch of evaluation images.

    Args:
      checkpoint: path prefix.
      images: `ImageNetInput`, for evaluation.
      model_name: a model with CondConv blocks.
      override_params: see `efficientnet_builder.get_model_params`.

    Returns:
      dict of 'checkpoint', 'weights' ('ema' or 'raw'), 'num_images', 'dead_below', 'num_dead'
      (block -> number of dead experts) and 'experts', a dict for each expert of each block:
      'block', 'expert', the 'mean', standard deviation 'std', 'min' and 'max' of its weight over
      the images, the mean binary 'entropy' of the weight in bits, and 'is_dead'.

    Raises:
      UserError: the checkpoint cannot be restored, or an image cannot be read.
    """
    images.check_first_records()
    weights = checkpoints.EMA if checkpoints.has_ema(checkpoint) else checkpoints.RAW
    builder = model_builder_factory.get_model_builder(model_name)
    with tf.Graph().as_default(), tf.Session() as session:
        pixels, labels = tf.data.make_one_shot_iterator(images.dataset()).get_next()
        _, endpoints = builder.build_model_base(
            builder.normalize(pixels), model_name, training=False, override_params=override_params)
        suffix = '/routing_weights'
        routing = {name[:-len(suffix)]: tensor for name, tensor in endpoints.items()
                   if name.endswith(suffix)}
        try:
            checkpoints.weights_saver(weights, checkpoint).restore(session, checkpoint)
        except tf.errors.OpError as error:
            raise UserError(f'{checkpoint} is damaged, or its variables are not those of '
                            f'{model_name} ({type(error).__name__}); name another one.') from error
        try:
            routing, is_image = session.run([routing, labels['weight']])
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            bad_record = next(images.find_bad_records(), None)
            if not bad_record:
                raise
            raise UserError(str(bad_record)) from error
    # The last batch of the data set is filled up with what is no image.
    is_image = is_image > 0
    experts = [expert for block, values in routing.items()
               for expert in _expert_records(block, values[is_image].astype(np.float64))]
    return {'checkpoint': checkpoint, 'weights': weights,
            'num_images': int(is_image.sum()), 'dead_below': _DEAD_BELOW,
            'num_dead': {block: sum(expert['is_dead'] for expert in experts
                                    if expert['block'] == block) for block in routing},
            'experts': experts}


def _expert_records(block, weights):
    """A record for each expert of a block from its routing weights [images, experts]."""
    tiny = np.finfo(np.float64).tiny  # 0 log 0 is 0
    entropy = -(weights * np.log2(weights + tiny) + (1 - weights) * np.log2(1 - weights + tiny))
    for index, values in enumerate(weights.T):
        yield {'block': block, 'expert': index, 'mean': float(values.mean()),
               'std': float(values.std()), 'min': float(values.min()), 'max': float(values.max()),
               'entropy': float(entropy[:, index].mean()),
               'is_dead': bool(values.max() < _DEAD_BELOW)}
