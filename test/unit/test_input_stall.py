"""The recommendations to a run whose device waits for input."""
import dataclasses
import os
import re
import time

import pytest

from config import run_config
from tfrecords import schema
from training import input_stall
from training import inputs

# A rank with 24 cores that decodes ImageNet for a network of 224 pixels.
BUSY = input_stall.Situation(
    cores=24, busy_share=0.95, num_threads=24, short_side=224, has_large_images=True,
    can_cache=True, is_cached=False, read_ahead_mb=16)
IDLE = BUSY._replace(busy_share=0.1)


@pytest.mark.parametrize('situation, words', [
    (BUSY, r'this rank \(24\) are busy decoding; dataset.create --max_short_side=288'),
    (BUSY._replace(can_cache=False), '--max_short_side=288'),
    (BUSY._replace(is_cached=True), '--max_short_side=288'),
    (BUSY._replace(short_side=380), '--max_short_side=488'),
    (BUSY._replace(has_large_images=False), 'only more cores help'),
    (BUSY._replace(num_threads=4, busy_share=0.2), '--num_parallel_calls=4 uses 4 of the 24'),
    (BUSY._replace(num_threads=48), '--max_short_side=288'),
    (IDLE, 'Storage is slow; the cores are idle 90% of the time: --use_cache'),
    (IDLE._replace(has_large_images=False), '--use_cache'),
    (IDLE._replace(can_cache=False), 'Storage is slow.*--max_short_side=288'),
    (IDLE._replace(can_cache=False, has_large_images=False), '--read_ahead_mb=128'),
    (IDLE._replace(can_cache=False, has_large_images=False, read_ahead_mb=20000),
     '--read_ahead_mb=100000'),
    (IDLE._replace(can_cache=False, has_large_images=False, read_ahead_mb=100000), None),
    (IDLE._replace(is_cached=True), None)])
def test_the_advice_is_what_helps_in_the_situation(situation, words):
    advice = input_stall.recommendation(situation)
    if words is None:
        assert advice is None
    else:
        assert advice and re.search(words, advice), advice


def test_a_long_stall_is_told_once(caplog):
    asked = []

    def find_situation(step, busy_share):
        asked.append((step, busy_share))
        return BUSY

    stall = input_stall.InputStall(find_situation)
    for step, share in ((100, 0.05), (200, 0.1), (300, 0.34), (400, 0.5)):
        stall.advise(step, share)
        stall.take()
    (step, busy_share), = asked
    assert step == 300 and busy_share <= 1
    message, = caplog.messages
    assert message.startswith(
        'The device waits for input 34 % of the time. The cores of this rank (24)')
    input_stall.InputStall().advise(1, 1.0)    # generated images: nothing to say
    assert len(caplog.messages) == 1


def test_cores_that_work_are_seen_to_be_busy():
    shares = []
    stall = input_stall.InputStall(lambda step, busy_share: shares.append(busy_share) or BUSY)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        pass
    stall.advise(1, 1.0)
    assert shares[0] > 0.7 / len(os.sched_getaffinity(0))


def make_config(data_dir, **values):
    return run_config.from_values({
        'data_dir': str(data_dir), 'model_dir': '/tmp/none', 'batch_size': 32,
        'input_image_size': 32, 'train_steps': 1000, **values})


def test_ranks_of_one_host_decode_with_their_share_of_its_cores(digits_dir):
    """Rank 0 evaluates while the others wait: with all cores."""
    all_cores = len(os.sched_getaffinity(0))

    def num_threads(config, is_training, ranks_on_host):
        return inputs.make_input(config, is_training, 1, 16, ranks_on_host).num_parallel_calls

    config = make_config(digits_dir)
    assert num_threads(config, True, 1) == all_cores
    assert num_threads(config, True, os.cpu_count()) == 1
    assert num_threads(config, False, os.cpu_count()) == all_cores
    assert num_threads(make_config(digits_dir, num_parallel_calls=5), True, 8) == 5


def test_the_situation_is_that_of_the_run(monkeypatch, digits_dir):
    config = make_config(digits_dir, num_parallel_calls=3, read_ahead_mb=5)
    train_input = inputs.make_input(config, is_training=True)
    found = input_stall.find_situation(config, 1, train_input, step=10, busy_share=0.4)
    assert (found.num_threads, found.short_side, found.read_ahead_mb) == (3, 32, 5)
    assert found.busy_share == 0.4 and found.can_cache
    assert not found.has_large_images and not found.is_cached
    small = make_config(digits_dir, input_image_size='8x12')
    assert input_stall.find_situation(small, 1, train_input, 10, 0.4).short_side == 8
    assert input_stall.find_situation(small, 1, train_input, 10, 0.4).has_large_images
    # A limit helps only if it is near the network's size: up to 8 * 9 / 7.
    info = schema.DatasetInfo.load(digits_dir)
    for max_short_side, is_large in ((10, False), (11, True)):
        monkeypatch.setattr(schema.DatasetInfo, 'load', lambda _, limit=max_short_side: (
            dataclasses.replace(info, max_short_side=limit)))
        found = input_stall.find_situation(small, 1, train_input, 10, 0.4)
        assert found.has_large_images == is_large
    monkeypatch.undo()
    wide = input_stall.find_situation(
        make_config(digits_dir, input_image_size='8x40'), 1, train_input, 10, 0.4)
    assert wide.has_large_images and wide.short_side == 8
    # Less than an epoch is left, so no image is read again.
    assert not input_stall.find_situation(config, 1, train_input, 950, 0.4).can_cache
