"""AutoAugment and RandAugment: random distortions of training images.

AutoAugment (Cubuk et al., arXiv:1805.09501) draws one sub-policy for each image: two operations,
each with a probability and a level, found by a search. RandAugment (Cubuk et al.,
arXiv:1909.13719, section 3) draws operations uniformly, all at one level. Both reproduce the
published scripts of EfficientNet and CondConv, including their quirks.

Only the drawn operation is computed. It takes on average a sixth of the time of the published code;
`python -m benchmarks.augmentation_ops` measures each operation.
"""
import numpy as np
import tensorflow.compat.v1 as tf

from common import image_ops

MAX_LEVEL = 10.0  # highest level of the policies; RandAugment's magnitude may exceed it

# Half the side of Cutout's square, and the distance of a translation, at MAX_LEVEL in pixels.
AUTOAUGMENT_REACH = {'cutout': 100, 'translate': 250}
RANDAUGMENT_REACH = {'cutout': 40, 'translate': 100}
# ABSOLUTE: these distances hold for all images, as in the published scripts. RELATIVE: they hold
# for images of PUBLISHED_SIZE and scale with the image size. Rotations and shears always scale.
SCALES = ABSOLUTE, RELATIVE = 'absolute', 'relative'
PUBLISHED_SIZE = 224

# Loss through ABSOLUTE distances: image side in pixels -> (share of augmented images that are
# blank, share of pixels that remain visible). Measured on 4,000 draws, for RandAugment with 2
# operations of magnitude 10. AutoAugment's only translation, by 225 pixels, leaves a blank image
# even at 224.
LOSSES = {
    'autoaugment': {32: (0.03, 0.94), 224: (0.03, 0.94)},
    'randaugment': {32: (0.35, 0.61), 48: (0.28, 0.62), 64: (0.24, 0.64), 96: (0.23, 0.67),
                    112: (0.00, 0.71), 128: (0.00, 0.74), 144: (0.00, 0.76), 224: (0.00, 0.83)},
}

POLICIES = {
    # EfficientNet's 25 sub-policies for ImageNet, which differ from table 9 of the paper. A
    # sub-policy is a pair of (operation, probability, level).
    'v0': (
        (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
        (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
        (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
        (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
        (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
        (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
        (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
        (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
        (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
        (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
        (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
        (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
        (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
        (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
        (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
        (('Rotate', 1.0, 7), ('TranslateY', 0.8, 9)),
        (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
        (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
        (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
        (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
        (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
        (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
        (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
        (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
        (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
    ),
    'test': ((('TranslateX', 1.0, 4), ('Equalize', 1.0, 10)),),
}


def distort_image_with_autoaugment(image, augmentation_name, seed=None, scale=ABSOLUTE):
    """Applies one sub-policy, drawn uniformly from a policy.

    Each operation of the sub-policy is applied in turn, with its own probability. Rotations, shears
    and translations go in either direction with equal probability.

    Args:
        image: uint8 [H, W, 3], of static shape.
        augmentation_name: str, one of `POLICIES`.
        seed: None or int64 [2]. The same seed gives the same distortion.
        scale: str, one of `SCALES`.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: the policy is unknown.
    """
    if augmentation_name not in POLICIES:
        raise ValueError(f'augmentation_name {augmentation_name!r}: unknown policy; choose one of '
                         f'{sorted(POLICIES)}.')
    policy = POLICIES[augmentation_name]
    used = {name for sub_policy in policy for name, _, _ in sub_policy}
    names = [name for name in OPS if name in used]
    reach = _scaled(AUTOAUGMENT_REACH, image, scale)
    table = np.array([[
        (names.index(name), probability, _argument(name, level, reach))
        for name, probability, level in sub_policy] for sub_policy in policy], np.float32)
    apply_one = _switch(names, image.shape)
    (choice, *_), *draws = _draw(seed, 1 + table.shape[1])
    sub_policy = tf.unstack(tf.gather(table, _index(choice, len(policy))))
    for step, (chance, *drawn) in zip(sub_policy, draws):
        op, probability, argument = tf.unstack(step)
        op = tf.where(chance + probability >= 1.0, tf.cast(op, tf.int32), len(names))
        image = apply_one(op, image, argument, *drawn)
    return image


def distort_image_with_randaugment(image, num_layers, magnitude, seed=None, scale=ABSOLUTE):
    """Applies operations drawn uniformly from `OPS`, one after the other.

    Rotations, shears and translations go in either direction with equal probability.

    Quirk: every drawn operation is applied. The published scripts also draw a probability from 0.2
    to 0.8 for each operation, but never use it.

    Args:
        image: uint8 [H, W, 3], of static shape.
        num_layers: int, at least 0, the number of operations (N in the paper).
        magnitude: number, at least 0, the level of every operation (M in the paper); AutoAugment's
            highest level is 10.
        seed: None or int64 [2]. The same seed gives the same distortion.
        scale: str, one of `SCALES`.

    Returns:
        uint8 [H, W, 3].
    """
    reach = _scaled(RANDAUGMENT_REACH, image, scale)
    arguments = np.array([_argument(name, magnitude, reach) for name in OPS], np.float32)
    apply_one = _switch(OPS, image.shape)
    for choice, *drawn in _draw(seed, num_layers):
        op = _index(choice, len(OPS))
        image = apply_one(op, image, tf.gather(arguments, op), *drawn)
    return image


def augmentation(name, num_layers, magnitude, scale=ABSOLUTE):
    """Returns the augmentation called `name` for `preprocessing.preprocess_for_train`.

    Args:
        name: 'autoaugment' (policy v0), 'randaugment', or None.
        num_layers, magnitude: see `distort_image_with_randaugment`; AutoAugment ignores them.
        scale: str, one of `SCALES`.

    Returns:
        callable `(image, seed) -> image`, or None if name is None.
    """
    if name == 'autoaugment':
        return lambda image, seed: distort_image_with_autoaugment(image, 'v0', seed, scale)
    if name == 'randaugment':
        return lambda image, seed: distort_image_with_randaugment(
            image, num_layers, magnitude, seed, scale)
    return None


def level_to_args(name, level, reach):
    """Returns an operation's arguments at a level, without the image and Cutout's center.

    Args:
        name: str, one of `OPS`.
        level: number, at least 0.
        reach: dict, `AUTOAUGMENT_REACH` or `RANDAUGMENT_REACH`.

    Returns:
        tuple of one number, at least 0; empty if the operation has no level.
    """
    ratio = level / MAX_LEVEL
    arguments = {
        'Rotate': ratio * 30.0,
        'Posterize': int(ratio * 4),
        'Solarize': int(ratio * 256),
        'Color': ratio * 1.8 + 0.1,
        'Contrast': ratio * 1.8 + 0.1,
        'Brightness': ratio * 1.8 + 0.1,
        'Sharpness': ratio * 1.8 + 0.1,
        'ShearX': ratio * 0.3,
        'ShearY': ratio * 0.3,
        'TranslateX': ratio * reach['translate'],
        'TranslateY': ratio * reach['translate'],
        'Cutout': int(ratio * reach['cutout']),
        'SolarizeAdd': int(ratio * 110),
    }
    return (arguments[name],) if name in arguments else ()


def _scaled(reach, image, scale):
    """Returns `reach` in pixels of an image; RELATIVE scales by the shorter side, as in timm."""
    if scale == ABSOLUTE:
        return reach
    side = min(image.shape.as_list()[:2])
    return {name: pixels * side / PUBLISHED_SIZE for name, pixels in reach.items()}


def _argument(name, level, reach):
    """Returns the number in `level_to_args`, or 0 if it is empty."""
    return sum(level_to_args(name, level, reach))


def _draw(seed, count):
    """Returns `count` lists of 4 float32 scalars, uniform in [0, 1)."""
    if seed is None:
        seed = tf.random.uniform([2], maxval=tf.int64.max, dtype=tf.int64)
    # The caller may draw from the same seed; changing it makes the two sequences differ.
    draws = tf.random.stateless_uniform([count, 4], tf.cast(seed, tf.int64) + [0, 1])
    return [tf.unstack(row) for row in tf.unstack(draws)]


def _index(draw, size):
    """Converts a draw from [0, 1) to an int32 scalar, uniform in 0..size - 1."""
    return tf.cast(draw * size, tf.int32)


def _switch(names, shape):
    """Returns a function that applies one of several operations without computing the others.

    Args:
        names: iterable of str, some of `OPS`.
        shape: TensorShape, [H, W, 3].

    Returns:
        callable, `(op, image, argument, direction, y, x)` -> uint8 [H, W, 3], with
          - op: int32 scalar, index into the names; len(names) leaves the image unchanged;
          - image: uint8 [H, W, 3];
          - argument: float32 scalar, at least 0; ignored by an operation without a level;
          - direction: float32 scalar in [0, 1), which decides the sign of a signed argument;
          - y, x: float32 scalars in [0, 1), which decide Cutout's center.
    """
    height, width, _ = shape.as_list()

    def branch(name):
        def apply(image, argument, direction, y, x):
            if name in ('AutoContrast', 'Equalize', 'Invert'):
                return OPS[name](image)
            if name in ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY'):
                return OPS[name](image, tf.where(direction < 0.5, argument, -argument))
            if name == 'Cutout':
                return OPS[name](image, argument, [_index(y, height), _index(x, width)])
            return OPS[name](image, argument)
        return apply

    signature = [tf.TensorSpec(shape, tf.uint8)] + 4 * [tf.TensorSpec([], tf.float32)]
    branches = [tf.function(function, signature, autograph=False).get_concrete_function()
                for function in [*map(branch, names), lambda image, *_: tf.identity(image)]]

    def apply_one(op, image, *args):
        # tf.switch_case would inline the functions. Skipping the nodes of the operations that were
        # not drawn would cost 0.08 ms.
        image, = tf.raw_ops.Case(branch_index=op, input=[image, *args], Tout=[tf.uint8],
                                 branches=branches, output_shapes=[shape])
        return image

    return apply_one


OPS = {
    'AutoContrast': image_ops.auto_contrast,
    'Equalize': image_ops.equalize,
    'Invert': image_ops.invert,
    'Rotate': image_ops.rotate,
    'Posterize': image_ops.posterize,
    'Solarize': image_ops.solarize,
    'Color': image_ops.color,
    'Contrast': image_ops.contrast,
    'Brightness': image_ops.brightness,
    'Sharpness': image_ops.sharpness,
    'ShearX': image_ops.shear_x,
    'ShearY': image_ops.shear_y,
    'TranslateX': image_ops.translate_x,
    'TranslateY': image_ops.translate_y,
    'Cutout': image_ops.cutout,
    'SolarizeAdd': image_ops.solarize_add,
}
"""Name -> function `(image, *args) -> image`: images are uint8 [H, W, 3] of static shape, args the
numbers of `level_to_args` or scalar tensors. Cutout takes its center as well."""
