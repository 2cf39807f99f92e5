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
  run_stop    step, status ('finished', 'already_finished' or 'failed'), bad_records (how many were
              left out)
"""
import json
import os
import time

import tensorflow.compat.v1 as tf

RESULTS_FILE = 'results.jsonl'


def append(model_dir, event, **fields):
    """Adds a line to the results of `model_dir`; None, of a rank that does not report, has none."""
    if model_dir is None:
        return
    path = os.path.join(model_dir, RESULTS_FILE)
    line = json.dumps({'event': event, 'time': round(time.time(), 3), **fields}) + '\n'
    if _ends_torn(path):
        # The process before this one was killed while it wrote: its half line ends here.
        line = '\n' + line
    with tf.gfile.GFile(path, 'a') as file:
        file.write(line)


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


def _ends_torn(path):
    if not tf.gfile.Exists(path) or tf.gfile.Stat(path).length == 0:
        return False
    with tf.gfile.GFile(path, 'rb') as file:
        file.seek(tf.gfile.Stat(path).length - 1)
        return file.read(1) != b'\n'
