"""Mixup and CutMix: the input pipeline draws the parameters, the device mixes the batch.

Both mix image i of a batch of B with image B - 1 - i, and their labels in the same proportion. The
pipeline draws the proportions, which are small, and the device mixes the pixels. The device only
multiplies and adds, so every runtime gives the same numbers.
"""
import numpy as np
import tensorflow.compat.v1 as tf

# Keys of the labels of a batch, see `draw`.
MIXUP_LAMBDA = 'mixup_lambda'
CUTMIX_ROWS, CUTMIX_COLUMNS = 'cutmix_rows', 'cutmix_columns'

NUM_SEEDS = 11          # seeds of `draw`: 4 for mixup, 6 for CutMix, 1 for the choice between them
CUTMIX_SHARE = 0.5      # with both enabled: probability that a batch gets CutMix, not mixup


def draw(mixup_alpha, cutmix_alpha, batch_size, image_shape, seeds):
    """Draws the mixing parameters of a batch.

    Args:
        mixup_alpha, cutmix_alpha: numbers, parameters of the Beta distributions; 0 disables. With
            both enabled, a batch gets CutMix with probability `CUTMIX_SHARE`, else mixup.
        batch_size: int.
        image_shape: (height, width) in pixels.
        seeds: list of `NUM_SEEDS` ints above 0; each run of the operations draws the next batch of
            their sequence.

    Returns:
        dict of float32 tensors, empty if both are disabled:
          - with mixup, MIXUP_LAMBDA [batch_size] in [0.5, 1], the share of image i in the mix; 1 in
            a batch that gets CutMix;
          - with CutMix, CUTMIX_ROWS [batch_size, height] and CUTMIX_COLUMNS [batch_size, width], 1
            in the rows and columns of the box that is taken from the other image, 0 elsewhere; 0
            everywhere in a batch that gets mixup.
    """
    mixup_seeds, cutmix_seeds, choice_seed = seeds[:4], seeds[4:10], seeds[10]
    drawn = {}
    if mixup_alpha:
        drawn[MIXUP_LAMBDA] = tf.sigmoid(tf.abs(_beta_logit(mixup_alpha, batch_size, mixup_seeds)))
    if cutmix_alpha:
        drawn[CUTMIX_ROWS], drawn[CUTMIX_COLUMNS] = _boxes(
            cutmix_alpha, batch_size, image_shape, cutmix_seeds)
    if mixup_alpha and cutmix_alpha:
        is_cutmix = tf.random.uniform([], seed=choice_seed) < CUTMIX_SHARE
        cutmix = tf.cast(is_cutmix, tf.float32)
        drawn[MIXUP_LAMBDA] = tf.maximum(drawn[MIXUP_LAMBDA], cutmix)
        drawn[CUTMIX_ROWS] *= cutmix
    return drawn


def mix(images, targets, labels):
    """Mixes the images and targets of a batch with the parameters from `draw`.

    Mixup (Zhang et al., arXiv:1710.09412, section 2): x = l x_i + (1 - l) x_j and
    y = l y_i + (1 - l) y_j for l from Beta(alpha, alpha). This implementation uses the larger of l
    and 1 - l, so image i has at least half of the mix.

    CutMix (Yun et al., arXiv:1905.04899, section 3.1, equation 1): x = M x_i + (1 - M) x_j, where M
    is 0 in a box and 1 elsewhere, and y = l y_i + (1 - l) y_j. As in the authors' code, l is the
    share of pixels that image i keeps after the box is clipped at the edge of the image.

    Args:
        images: float32 [batch, height, width, channels].
        targets: float32 [batch, classes], one-hot labels.
        labels: dict that contains the tensors from `draw`; other keys are ignored.

    Returns:
        (images, targets), of the same shapes; unchanged if `labels` has no mixing parameters.
    """
    if MIXUP_LAMBDA in labels:
        lambdas = labels[MIXUP_LAMBDA]
        images = _blend(images, tf.reshape(lambdas, [-1, 1, 1, 1]))
        targets = _blend(targets, tf.reshape(lambdas, [-1, 1]))
    if CUTMIX_ROWS in labels:
        rows, columns = labels[CUTMIX_ROWS], labels[CUTMIX_COLUMNS]
        box = rows[:, :, tf.newaxis, tf.newaxis] * columns[:, tf.newaxis, :, tf.newaxis]
        share = tf.reduce_mean(rows, 1, keepdims=True) * tf.reduce_mean(columns, 1, keepdims=True)
        images = _blend(images, 1 - box)
        targets = _blend(targets, 1 - share)
    return images, targets


def _blend(values, weights):
    """Returns weight * entry i + (1 - weight) * entry B - 1 - i, for each i of a batch of B."""
    return values * weights + tf.reverse(values, [0]) * (1 - weights)


def _boxes(alpha, batch_size, image_shape, seeds):
    """Draws the boxes of CutMix and returns their (rows, columns), see `draw`.

    For l from Beta(alpha, alpha), a box has sqrt(1 - l) of the height and of the width, hence 1 - l
    of the area. Its center is a uniform pixel; the box is clipped at the edge of the image.

    Source: arXiv:1905.04899, section 3.1, equation 2, and algorithm A1.
    """
    *beta_seeds, row_seed, column_seed = seeds
    # sqrt(1 - l), where l = sigmoid(logit) and so 1 - l = sigmoid(-logit).
    side_share = tf.sqrt(tf.sigmoid(-_beta_logit(alpha, batch_size, beta_seeds)))
    return [_interval(side_share, size, seed)
            for size, seed in zip(image_shape, [row_seed, column_seed])]


def _interval(share, size, seed):
    """Returns float32 [batch, size]: 1 within a random interval of `share` of the size, else 0."""
    center = tf.floor(size * tf.random.uniform([share.shape[0].value], seed=seed))
    half = tf.floor(tf.floor(size * share) / 2)
    distance = np.arange(size, dtype=np.float32) - center[:, tf.newaxis]
    half = half[:, tf.newaxis]
    return tf.cast((distance >= -half) & (distance < half), tf.float32)


def _beta_logit(alpha, batch_size, seeds):
    """Draws log(x / (1 - x)), float32 [batch_size], for x from Beta(alpha, alpha)."""
    # x = G1 / (G1 + G2) for two Gamma(alpha) variables, so its logit is log(G1) - log(G2). At a
    # small alpha, a Gamma variable underflows, but its logarithm does not: log Gamma(alpha) ~
    # log Gamma(alpha + 1) + log(U) / alpha (Marsaglia and Tsang, 2000).
    def log_gamma(gamma_seed, uniform_seed):
        gamma = tf.random.gamma([batch_size], alpha + 1.0, seed=gamma_seed)
        uniform = tf.random.uniform([batch_size], minval=np.finfo(np.float32).tiny,
                                    seed=uniform_seed)
        return tf.log(gamma) + tf.log(uniform) / alpha

    return log_gamma(*seeds[:2]) - log_gamma(*seeds[2:])
