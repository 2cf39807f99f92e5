"""The curves of a report: logged values of training and evaluation, over epochs."""
from typing import NamedTuple
from typing import Optional
from typing import Tuple

from checkpoints import restore
from report import page
from report import plots

# `Curve.weights` -> color of the curve in the report of a single run.
_COLORS = {None: plots.PALETTE[0], restore.RAW: plots.PALETTE[1], restore.EMA: plots.PALETTE[2]}


class Curve(NamedTuple):
    """A curve that is drawn for each run.

    Attributes:
      key: event field with the values.
      label: legend entry in a chart with several curves.
      style: line style, see `plots.curves`.
      weights: evaluated weights, restore.RAW or EMA; None for training.
      is_of_one_run: whether the curve is omitted when runs are compared.
    """
    key: str
    label: str = ''
    style: str = '-'
    weights: Optional[str] = None
    is_of_one_run: bool = False


class Chart(NamedTuple):
    """A figure of curves."""
    y_label: str
    caption: str
    curves: Tuple[Curve, ...]
    is_log: bool = False


def _validation(key):
    return (Curve(key, 'validation, trained weights', '--o', restore.RAW),
            Curve(key, 'validation, averaged weights', '-o', restore.EMA))


CHARTS = (
    Chart('cross entropy', 'Cross entropy without label smoothing and weight decay, on augmented '
          'training batches and on validation images',
          (Curve('unsmoothed_cross_entropy', 'training'), *_validation('cross_entropy'))),
    Chart('top-1', 'Top-1 accuracy: share of images whose class has the highest probability',
          (Curve('top_1', 'training'), *_validation('top_1'))),
    Chart('top-5', 'Top-5 accuracy: share of images whose class is among the five highest '
          'probabilities',
          (Curve('top_5', 'training'), *_validation('top_5'))),
    Chart('learning rate', 'Learning rate', (Curve('learning_rate'),)),
    Chart('training loss', 'Training loss: cross entropy with label smoothing, plus weight decay; '
          'not comparable with validation values',
          (Curve('loss', 'loss'),
           Curve('cross_entropy', 'without weight decay', ':', is_of_one_run=True))),
    Chart('norm', 'Global gradient norm', (Curve('gradient_norm'),), is_log=True),
    Chart('L2', 'Weight decay in the loss', (Curve('l2_loss'),)),
    Chart('images/s', 'Training speed', (Curve('images_per_sec'),)),
    Chart('share', 'Share of time for which the device waited for input',
          (Curve('input_stall'),)),
    Chart('loss scale', 'Loss scale', (Curve('loss_scale'),), is_log=True),
    Chart('steps', 'Steps skipped because of overflow since the start of the run',
          (Curve('skipped_steps'),)))


def figures(runs):
    """Returns a `page.Figure` for each chart with data, or a sentence (str) if there is none."""
    found = []
    for chart in CHARTS:
        lines = [_line(curve, runs, index) for curve in chart.curves
                 if len(runs) == 1 or not curve.is_of_one_run for index in range(len(runs))]
        svg = plots.curves(lines, 'epoch', chart.y_label, chart.is_log)
        if svg:
            found.append(page.Figure(svg, chart.caption))
    return found or 'No training step has been logged yet.'


def _line(curve, runs, index):
    """Returns the curve of one run in the form that `plots.curves` accepts."""
    run, label, color = runs[index], curve.label, _COLORS[curve.weights]
    if len(runs) > 1:
        label = f'{run.name}: {label}' if label else run.name
        color = plots.PALETTE[index % len(plots.PALETTE)]
    if curve.weights:
        points = [(run.epoch_of(row.step), row.by_weights[curve.weights].get(curve.key))
                  for row in run.rows
                  if curve.weights in row.by_weights and not (row.name or row.image_size)]
    else:
        points = [(event.get('epoch') or run.epoch_of(event['step']), event.get(curve.key))
                  for event in run.steps]
    return label, [x for x, _ in points], [y for _, y in points], color, curve.style
