"""Model name -> family and input size; the list of all models."""
import efficientnet_builder

MODEL_NAMES = tuple(efficientnet_builder.VARIANTS)


def get_model_builder(model_name):
    """Returns the `efficientnet_builder.Family` of a model, which builds it.

    Raises:
      ValueError: an unknown name, with the list of those that exist.
    """
    return efficientnet_builder.FAMILIES[efficientnet_builder.get_variant(model_name).family]


def get_model_input_size(model_name):
    """Returns the side in pixels of the square images of a model; raises ValueError as above."""
    return efficientnet_builder.get_variant(model_name).image_size
