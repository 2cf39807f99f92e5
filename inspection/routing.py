"""How the CondConv blocks of a trained network use their experts."""
import tensorflow.compat.v1 as tf

from inspection import experts as expert_statistics
import model_builder_factory
from training import checkpoints
from user_error import UserError


def routing_statistics(checkpoint, images, model_name, override_params):
    """How the CondConv blocks of a trained network route the first batch of evaluation images.

    Args:
      checkpoint: path prefix.
      images: `ImageNetInput`, for evaluation.
      model_name: a model with CondConv blocks.
      override_params: see `efficientnet_builder.get_model_params`.

    Returns:
      dict of 'checkpoint', 'weights' ('ema' or 'raw'), 'num_images', 'dead_below', 'num_dead'
      (block -> number of dead experts) and 'experts', a record for each expert of each block, see
      `experts.describe`.

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
               for expert in expert_statistics.describe(block, values[is_image])]
    return {'checkpoint': checkpoint, 'weights': weights,
            'num_images': int(is_image.sum()), 'dead_below': expert_statistics.DEAD_BELOW,
            'num_dead': {block: sum(expert['is_dead'] for expert in experts
                                    if expert['block'] == block) for block in routing},
            'experts': experts}
