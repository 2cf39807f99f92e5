"""Model name -> builder and input size; the list of all models."""
import efficientnet_builder

MODEL_NAMES = tuple(efficientnet_builder.VARIANTS)


def get_model_builder(model_name):
    """The builder of a model's family: MEAN_RGB, STDDEV_RGB, build_model and build_model_base.

    Raises:
      ValueError: an unknown name, with the list of those that exist.
    """
    return efficientnet_builder.FAMILIES[efficientnet_builder.get_variant(model_name).family]


def get_num_blocks(model_name, override_params=None):
    """Blocks that a model has, 'blocks_0' to 'blocks_<number - 1>'; ValueError as above."""
    return efficientnet_builder.get_num_blocks(model_name, override_params)


def get_model_input_size(model_name):
    """Side in pixels of the square images a model was made for; ValueError as above."""
    return efficientnet_builder.get_variant(model_name).image_size
