"""Generates random batches without reading files, for --data_dir=synthetic."""
import numpy as np
import tensorflow.compat.v1 as tf

from common.image_sizes import ImageSize
from tfrecords import schema


def batches(is_training, batch_size, image_size, num_classes, num_images, seed):
    """Returns a dataset that repeats one batch of random images.

    Training on it measures the device without the cost of the input pipeline. Evaluations have the
    same batch in every process, so that their results can be compared.

    Args:
        is_training: bool; if True, the dataset is endless.
        batch_size, num_classes: int.
        image_size: `ImageSize`, or int for a square.
        num_images: int, images of an evaluation; None for the number in `schema.SYNTHETIC`.
        seed: None or int, at least 0; None draws a seed in training and is 0 in evaluation.

    Returns:
        tf.data.Dataset, see `ImageNetInput.dataset`.
    """
    random = np.random.RandomState(seed if is_training else seed or 0)
    shape = [batch_size, *ImageSize.of(image_size), 3]

    def make_images(image_seed):
        images = tf.random.stateless_uniform(shape, [image_seed, 0], maxval=256, dtype=tf.int32)
        return tf.cast(images, tf.uint8 if is_training else tf.float32)

    images = tf.data.Dataset.from_tensors(random.randint(1 << 30)).map(
        tf.autograph.experimental.do_not_convert(make_images)).cache().repeat()
    label = random.randint(num_classes, size=batch_size).astype(np.int32)
    if is_training:
        labels = tf.data.Dataset.from_tensors({'label': label}).repeat()
        return tf.data.Dataset.zip((images, labels))
    num_images = num_images or schema.SYNTHETIC.num_images[schema.VALIDATION]
    starts = range(0, num_images, batch_size)
    weights = [np.arange(start, start + batch_size) < num_images for start in starts]
    labels = {'label': np.stack([label] * len(starts)),
              'weight': np.stack(weights).astype(np.float32)}
    return tf.data.Dataset.zip((images, tf.data.Dataset.from_tensor_slices(labels)))
