"""Model name -> family and input size; the list of all models."""
import dataclasses

import efficientnet_builder

MODEL_NAMES = tuple(efficientnet_builder.VARIANTS)


def get_model_builder(model_name, normalization=None):
    """Returns the `efficientnet_builder.Family` of a model, which builds it.

    Args:
      model_name: one of `MODEL_NAMES`.
      normalization: one of `efficientnet_builder.NORMALIZATIONS`; None for the family's own.

    Raises:
      ValueError: an unknown name, with the list of those that exist.
    """
    family = efficientnet_builder.FAMILIES[efficientnet_builder.get_variant(model_name).family]
    if normalization:
        mean, stddev = efficientnet_builder.NORMALIZATIONS[normalization]
        family = dataclasses.replace(family, MEAN_RGB=mean, STDDEV_RGB=stddev)
    return family


def get_model_input_size(model_name):
    """Returns the side in pixels of the square images of a model; raises ValueError as above."""
    return efficientnet_builder.get_variant(model_name).image_size
