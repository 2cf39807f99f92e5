"""model_dir/results.jsonl: what a run did, one JSON object a line, for programs to read.

Every line has `event` and `time` (seconds since 1970). The events:
  run_start   mode, model_name, step (where it resumes), total_steps
  train       step, epoch, loss, cross_entropy, top_1, learning_rate, images_per_sec (one a
              progress line; cross_entropy is the loss without weight decay); with
              --log_input_stall also input_stall, the share of the time since the line before for
              which the device waited for input
  bad_record  path, index, fault (one for each record that --max_bad_records leaves out)
  train_stop  step, images_per_sec (since the first step, which builds and compiles, was over; one a
              session: with iterations_per_loop the last few steps have one of their own)
  eval        step, name, weights ('ema' or 'raw'), top_1, top_5, cross_entropy, num_images
  export      step, path
  run_stop    step, status ('finished', 'already_finished', 'interrupted' by a signal, 'out_of_time'
              by --max_hours or --stop_at, or 'failed'), bad_records (how many were left out); where
              the loss is scaled also skipped_steps, whose gradients overflowed
"""
import json
import os
import time

import tensorflow.compat.v1 as tf

import storage

RESULTS_FILE = 'results.jsonl'
_MAX_LINE_BYTES = 2 ** 20


def append(model_dir, event, **fields):
    """Adds a line to the results of `model_dir`; None, of a rank that does not report, has none.

    Raises:
      UserError: it cannot be written; no half of it stays.
    """
    if model_dir is None:
        return
    path = os.path.join(model_dir, RESULTS_FILE)
    line = json.dumps({'event': event, 'time': round(time.time(), 3), **fields}) + '\n'
    with storage.readable_errors():
        # Of a process that was killed while it wrote.
        _remove_torn_line(path)
        try:
            with tf.gfile.GFile(path, 'a') as file:
                file.write(line)
        except tf.errors.OpError:
            _remove_torn_line(path)
            raise


def read(model_dir):
    """The events of `model_dir` in order, as dicts; a line torn by a kill is left out."""
    path = os.path.join(model_dir, RESULTS_FILE)
    if not tf.gfile.Exists(path):
        return []
    events = []
    with tf.gfile.GFile(path) as file:
        for line in file.read().splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
    return events


def _remove_torn_line(path):
    """Cuts off what follows the last end of a line; of an object in a store, which is never torn,
    nothing."""
    if '://' in path or not os.path.exists(path):
        return
    with open(path, 'r+b') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_LINE_BYTES))
        tail = file.read()
        if tail and not tail.endswith(b'\n'):
            file.truncate(size - len(tail) + tail.rfind(b'\n') + 1)
