"""Report sections from the logs of the runs.

Each function returns the argument of the macro of report.html.j2 with the same name, or a sentence
(str) to show instead.
"""
import os

from checkpoints import store
from checkpoints.best import TOP_1
from checkpoints.best import best_evaluation
from checkpoints.best import weight_of
from config import settings
from report import page
from report import plots
from report import run_data
from run_log import class_metrics
from run_log import event_log

MAX_CLASSES_SHOWN = 10    # best classes, and as many worst classes


def overview(runs):
    """Returns the main figures: a list of (name, value) for one run, a table for several."""
    figures = [_main_figures(run) for run in runs]
    if len(runs) == 1:
        return figures[0]
    best = max((run for run in runs if run.best), default=None,
               key=lambda run: weight_of(run.best.judged, TOP_1))
    return page.HtmlTable(
        ['run', 'model', *(name for name, _ in figures[0])],
        [[run.name, run.config.model.model_name, *(value for _, value in values)]
         for run, values in zip(runs, figures)],
        'All runs; the best run is marked.', [run is best for run in runs])


def _main_figures(run):
    best, rate = run.best, event_log.images_per_sec(run.steps)
    judged = best.judged if best else {}
    return [
        ('best top-1', _percent(judged.get('top_1'))),
        ('its top-5', _percent(judged.get('top_5'))),
        ('at step', best and f'{best.step:,}'),
        ('trained until step', f'{run.last_step:,}'),
        ('epochs', f'{run.epoch_of(run.last_step):.1f}'),
        ('images/s, median', rate and f'{rate:,.0f}'),
        ('hours of training', f'{run.secs / 3600:.2f}'),
        ('ended', run.status)]


def evaluations(run):
    """Returns a table of all evaluations and the path of the best checkpoint."""
    if not run.rows:
        return 'There is no evaluation yet.'
    columns = {'step': [f'{row.step:,}' for row in run.rows],
               'epoch': [f'{run.epoch_of(row.step):.2f}' for row in run.rows]}
    if any(row.name for row in run.rows):
        columns['name'] = [row.name or '' for row in run.rows]
    if any(row.image_size for row in run.rows):
        columns['image size'] = [str(row.image_size or '') for row in run.rows]
    for key, heading, form in (('top_1', 'top-1', _percent), ('top_5', 'top-5', _percent),
                               ('cross_entropy', 'cross entropy', _rounded)):
        for kind, weights in run_data.WEIGHT_NAMES.items():
            if any(kind in row.by_weights for row in run.rows):
                columns[f'{heading}, {weights}'] = [
                    form(row.by_weights.get(kind, {}).get(key)) for row in run.rows]
    columns['images'] = [f"{row.judged.get('num_images', 0):,}" for row in run.rows]
    archived = best_evaluation(run.model_dir)
    return {
        'table': page.HtmlTable(
            list(columns), list(zip(*columns.values())),
            'Evaluations of the trained weights and of their moving average; the best evaluation '
            'is marked.',
            [row.is_best for row in run.rows]),
        'best_checkpoint': archived and os.path.join(
            run.model_dir, store.ARCHIVE_DIR, archived['checkpoint'])}


def classes(run):
    """Returns the worst and best classes of the best evaluation, and its confusion matrix."""
    found, row = {}, run.best
    if row:
        label = '_'.join(filter(None, (row.name, row.judged['weights'])))
        found = class_metrics.read_evaluations(
            class_metrics.evaluation_folder(run.model_dir, label)).get(row.step, {})
    if not set(class_metrics.COUNTS) <= set(found):
        return ('The event files of this run lack per-class counts; run --mode=eval --eval_once '
                'to add them.')
    scores = [score for score in class_metrics.scores(found, run.class_names) if score.support]
    scores.sort(key=lambda score: score.recall)
    num_worst = min(MAX_CLASSES_SHOWN, (len(scores) + 1) // 2)
    num_best = min(MAX_CLASSES_SHOWN, len(scores) // 2)
    content = {'num_classes': len(scores), 'step': row.step,
               'weights': run_data.WEIGHT_NAMES[row.judged['weights']],
               'tables': [_class_table(scores[:num_worst], 'The worst, by recall'),
                          _class_table(scores[::-1][:num_best], 'The best, by recall')],
               'confusion': None}
    if 'confusion_matrix' in found:
        content['confusion'] = page.Figure(
            plots.heatmap(found['confusion_matrix'], run.class_names, run.class_names,
                          'taken for', 'class', digits=0),
            'Confusion matrix: number of images by true class (row) and predicted class (column)')
    return content


def _class_table(scores, caption):
    return page.HtmlTable(['class', 'precision', 'recall', 'F1', 'support'], [
        [score.name, *map(_percent, (score.precision, score.recall, score.f1)),
         f'{score.support:,}'] for score in scores], caption)


def configuration(runs):
    """Returns the tables of the notable settings and of all settings by group.

    Notable settings are those that the user changed (one run) or that differ (several runs).
    """
    if len(runs) == 1:
        caption = 'Settings that the user changed from the default; they are marked below.'
        headings = ['flag', 'value']
    else:
        caption = 'Settings that differ between the runs; they are marked below.'
        headings = ['flag', *(run.name for run in runs)]
    different, groups = [], []
    for group, fields in settings.by_group().items():
        rows, is_marked = [], []
        for field in fields:
            values = [getattr(getattr(run.config, group), field.name) for run in runs]
            texts = ['' if value is None else str(value) for value in values]
            rows.append([f'--{field.name}', *texts])
            is_marked.append(len(set(texts)) > 1 if len(runs) > 1
                             else field.name in runs[0].changed_settings)
        different += [row for row, is_different in zip(rows, is_marked) if is_different]
        groups.append((group, page.HtmlTable(headings, rows, '', is_marked)))
    return {'different': page.HtmlTable(headings, different, caption), 'groups': groups}


def environment(runs):
    """Returns a table of the environment in which each run was last started."""
    names = dict.fromkeys(name for run in runs for name in run.environment)
    headings = ['', *(run.name for run in runs)] if len(runs) > 1 else ['what', 'value']
    return page.HtmlTable(headings, [
        [name.replace('_', ' '), *(run.environment.get(name, '') for run in runs)]
        for name in names], 'As recorded when the run was last started.')


def _percent(share):
    return None if share is None else f'{share:.2%}'


def _rounded(value):
    return None if value is None else f'{value:.4f}'
