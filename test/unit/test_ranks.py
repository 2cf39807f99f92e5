"""One rule for ties: in the graph of main.py and in predict.py."""
import argparse
import itertools

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from common import ranks
from export import loading
import predict

RANDOM = np.random.RandomState(0)


@pytest.mark.parametrize('num_classes', [2, 5, 6, 50])
def test_equal_logits_count_if_the_class_is_lower(num_classes):
    logits = RANDOM.randint(-3, 3, [200, num_classes]).astype(np.float32)
    logits[:9] = 0
    labels = RANDOM.randint(0, num_classes, 200).astype(np.int32)
    expected = [sum(other > row[label] for other in row) + sum(row[:label] == row[label])
                for row, label in zip(logits, labels)]
    order = ranks.ranked_classes({'logits': logits, 'probabilities': np.zeros_like(logits)})
    np.testing.assert_array_equal(np.argmax(order == labels[:, np.newaxis], 1), expected)
    np.testing.assert_array_equal(order, ranks.ranked_classes({'probabilities': logits}))
    is_in = is_among_first(logits, labels)
    np.testing.assert_array_equal(is_in, np.array(expected)[:, np.newaxis] < [1, 3, 5])


def is_among_first(logits, labels):
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(ranks.is_among_first(
            tf.constant(logits), tf.constant(labels), tf.one_hot(labels, logits.shape[1]),
            [1, 3, 5]))


def test_what_is_not_a_number_is_wrong():
    logits = np.array([[np.nan] * 3, [1, np.nan, 0], [2, 1, 0]], np.float32)
    is_in = is_among_first(logits, np.zeros(3, np.int32))
    np.testing.assert_array_equal(is_in, [[False] * 3] * 2 + [[True] * 3])


@pytest.mark.parametrize('has_logits, first', [(True, 1), (False, 0)])
def test_predictions_are_ranked_by_logits_if_there_are_any(monkeypatch, has_logits, first):
    """Logits of 90 and 100 below the largest have the same float32 probability, 0."""
    logits = np.array([[-100, -90, 0], [7, 7, 9]], np.float32)
    outputs = {'probabilities': np.array([[0, 0, 1], [.1, .1, .8]], np.float32)}
    if has_logits:
        outputs['logits'] = logits
    model = loading.LoadedModel(lambda pixels: outputs, 4, None, {})

    class Decoder:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def decode_all(self, batch):
            return batch, np.zeros([len(batch), 4, 4, 3], np.float32), []

    monkeypatch.setattr(predict.export_images, 'Decoder', Decoder)
    found = list(predict._predictions(
        model, itertools.chain('ab'), 2,
        argparse.Namespace(batch_size=8, max_image_pixels=99), None))
    assert found[0].ranking.tolist() == [2, first, 1 - first]
    assert found[1].ranking.tolist() == [2, 0, 1]
