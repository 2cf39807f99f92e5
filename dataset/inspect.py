"""Checks every record of a dataset: `python3.7 -m dataset.inspect --data_dir=DATA`.

Reports counts, labels, image sizes and modes, unusable records (shard and index), images shared by
training and validation, and contradictions to dataset_info.json; draws contact_sheet.png. Every
image is decoded, which takes about one hour on one core for 1,000,000 images of ImageNet's size.
"""
import collections
import concurrent.futures
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import sys

from absl import flags
import numpy as np
import tensorflow.compat.v1 as tf
import tqdm

from common import app
from common.errors import UserError
from common.files import whole_file
from common.paths import check_output_file
from dataset import contact_sheet
from dataset import shard_findings
from tfrecords import image_formats
from tfrecords import layout
from tfrecords import schema

SHEET_NAME = 'contact_sheet.png'
NUM_SHOWN = 20             # rows of each list in the text report; JSON has all


def define_flags():
    flags.DEFINE_string('data_dir', None, 'Directory of the TFRecord shards.')
    app.define_text_flags(layout.FLAGS)
    flags.DEFINE_bool('json', False, 'Print everything as JSON.')
    flags.DEFINE_string('contact_sheet', None, 'PNG file to write with some images of each class; '
                        f"default: {SHEET_NAME} in --data_dir; '' for none.")
    flags.DEFINE_integer('max_image_pixels', image_formats.MAX_IMAGE_PIXELS, 'Reject records whose '
                         'image has more pixels (height x width). The limit protects against '
                         'decompression bombs.', lower_bound=1, upper_bound=app.LARGEST_INTEGER)
    flags.DEFINE_integer('num_processes', None, 'Number of decoding processes; default: one per '
                         'core.', lower_bound=1)


def look_at(data_dir, num_processes, max_pixels, draws=True, shards=layout.DETECTED):
    """Decodes all shards of a dataset in parallel.

    Args:
        data_dir: str.
        num_processes: int.
        max_pixels: int; a larger image counts as corrupt.
        draws: bool, whether thumbnails are needed.
        shards: `layout.Layout` of the dataset.

    Returns:
        dict, split -> list of (path of a shard, `shard_findings.ShardFindings`).

    Raises:
        UserError: the training shards are missing or incomplete, or the validation shards are
            incomplete.
    """
    paths = {}
    for split in schema.SPLITS:
        try:
            paths[split] = shards.find_shards(data_dir, split)
        except UserError:
            if split == schema.TRAIN:
                raise
            # Validation shards may be missing altogether, but not in part.
            if shards.eval_pattern or any(
                    name.startswith(f'{split}-') for name in tf.io.gfile.listdir(data_dir)):
                raise
            paths[split] = []
    info = schema.DatasetInfo.load(data_dir)
    labels_shown = set() if not draws else info and {
        info.label_base + index for index in contact_sheet.chosen_classes(info.num_classes)}
    all_paths = sum(paths.values(), [])
    forms = [form for split in schema.SPLITS
             for form in [shards.record_format(paths[split])] * len(paths[split])]
    context = multiprocessing.get_context('fork')
    with concurrent.futures.ProcessPoolExecutor(
            min(num_processes, len(all_paths)), context) as executor:
        findings = executor.map(
            functools.partial(shard_findings.look_at_shard, labels_shown=labels_shown,
                              max_pixels=max_pixels), all_paths, forms)
        found = dict(zip(all_paths, tqdm.tqdm(
            findings, total=len(all_paths), unit=' shards', disable=not sys.stderr.isatty())))
    return {split: [(path, found[path]) for path in paths[split]] for split in schema.SPLITS}


def summarise(data_dir, found, shards=layout.DETECTED):
    """Returns all findings as a dict, the content of --json."""
    info = schema.DatasetInfo.load(data_dir)
    summary = {'data_dir': data_dir, 'dataset_info': info and dataclasses.asdict(info),
               'splits': {split: _summarise_split(found[split]) for split in schema.SPLITS}}
    summary['corrupt'] = [
        {'split': split, 'shard': os.path.basename(path), 'index': index, 'reason': reason}
        for split in schema.SPLITS for path, shard in found[split]
        for index, reason in shard.corrupt]
    summary['duplicates'] = _duplicates(found)
    summary['contradictions'] = _contradictions(
        info, summary['splits'], shards.label_base(data_dir))
    return summary


def _summarise_split(shards):
    total = {name: sum((getattr(shard, name) for _, shard in shards), collections.Counter())
             for name in ('labels', 'formats', 'modes')}
    sizes = np.concatenate([shard.sizes for _, shard in shards] or [np.zeros([0, 2], np.int32)])
    names = {}
    for _, shard in shards:
        names.update(shard.names)
    return {
        'num_shards': len(shards),
        'num_images': len(sizes),
        'num_labels': len(total['labels']),
        'labels': [{'label': label, 'name': names[label], 'count': count}
                   for label, count in sorted(total['labels'].items())],
        'formats': dict(total['formats'].most_common()),
        'modes': dict(total['modes'].most_common()),
        'sizes': {axis: {statistic: int(function(sizes[:, column]))
                         for statistic, function in (
                             ('min', np.min), ('median', np.median), ('max', np.max))}
                  for column, axis in enumerate(('width', 'height'))} if len(sizes) else {}}


def _duplicates(found):
    """Returns the images with equal pixels in both splits, a list of {'train', 'validation'}."""
    # Only the hashes of the validation split, which is smaller, are held in a dict.
    places = {}
    for path, shard in found[schema.VALIDATION]:
        for digest, index in zip(shard.hashes.tolist(), shard.indices.tolist()):
            places.setdefault(digest, []).append(f'{os.path.basename(path)}:{index}')
    return [{'train': f'{os.path.basename(path)}:{index}', 'validation': place}
            for path, shard in found[schema.TRAIN]
            for digest, index in zip(shard.hashes.tolist(), shard.indices.tolist())
            for place in places.get(digest, ())]


def _contradictions(info, splits, usual_base):
    """Returns a sentence for each contradiction between dataset_info.json and the records."""
    sentences = []
    if info is None:
        labels = [row['label'] for split in splits.values() for row in split['labels']]
        if usual_base and 0 in labels:
            sentences.append('Labels start at 0 and there is no dataset_info.json; train with '
                             '--label_base=0.')
        return sentences
    for split, summary in splits.items():
        if summary['num_images'] != info.num_images[split]:
            sentences.append(f"{split} has {summary['num_images']} usable images, "
                             f'dataset_info.json says {info.num_images[split]}.')
        outside = [row['label'] for row in summary['labels']
                   if not (row['label'] in info.class_names if isinstance(row['label'], str) else
                           0 <= row['label'] - info.label_base < info.num_classes)]
        if outside:
            sentences.append(
                f'{split} has label {outside[0]!r}, dataset_info.json says {info.label_base} to '
                f'{info.label_base + info.num_classes - 1}.')
    return sentences


def draw_sheet(path, found, class_names, label_base):
    """Draws the contact sheet from training images, filled up with validation images.

    Raises:
        UserError: the file cannot be written.
    """
    thumbnails, names = collections.defaultdict(list), {}
    for split in schema.SPLITS:
        for _, shard in found[split]:
            names.update({label: name for label, name in shard.names.items() if name})
            for label, files in shard.thumbnails.items():
                thumbnails[label] += files[:contact_sheet.IMAGES_PER_CLASS - len(thumbnails[label])]
    # One split may have integer labels and the other text.
    labels = sorted(thumbnails, key=lambda label: (isinstance(label, str), label))
    rows = []
    for label in (labels[index] for index in contact_sheet.chosen_classes(len(labels))):
        known = not isinstance(label, str) and 0 <= label - label_base < len(class_names)
        name = class_names[label - label_base] if known else names.get(label, '')
        rows.append((f'{label}  {name}', thumbnails[label]))
    file = io.BytesIO()
    contact_sheet.draw(rows).save(file, 'PNG')
    try:
        with whole_file(path, 'wb') as sheet:
            sheet.write(file.getvalue())
    except tf.errors.OpError as error:
        raise UserError(f'{path}: cannot be written ({error.message}); name another file with '
                        '--contact_sheet.') from error


def report(summary):
    """Returns the summary as text."""
    lines = [summary['data_dir']]
    for split, figures in summary['splits'].items():
        lines.append(f"{split}: {figures['num_images']} images of {figures['num_labels']} labels "
                     f"in {figures['num_shards']} shards")
        if not figures['num_images']:
            continue
        for axis, values in figures['sizes'].items():
            lines.append(f"  {axis} {values['min']} to {values['max']} pixels, median "
                         f"{values['median']}")
        for what in ('formats', 'modes'):
            lines.append(f'  {what} ' + ', '.join(
                f'{name} {count}' for name, count in figures[what].items()))
        most = max(row['count'] for row in figures['labels'])
        rows = [f"  {row['label']:5} {row['name'][:24]:24} {row['count']:7} "
                f"{'#' * round(40 * row['count'] / most)}" for row in figures['labels']]
        lines += _shortened(rows)
    lines.append(f"{len(summary['corrupt'])} unusable records")
    lines += _shortened([f"  {row['shard']}, record {row['index']}: {row['reason']}"
                         for row in summary['corrupt']])
    lines.append(f"{len(summary['duplicates'])} images shared by training and validation")
    lines += _shortened([f"  {row['train']} equals {row['validation']}"
                         for row in summary['duplicates']])
    lines += summary['contradictions']
    if summary['contact_sheet']:
        lines.append(f"Some images of each class: {summary['contact_sheet']}")
    return '\n'.join(lines)


def _shortened(rows):
    if len(rows) <= NUM_SHOWN:
        return rows
    return rows[:NUM_SHOWN] + [f'  and {len(rows) - NUM_SHOWN} more, see --json']


def main(_):
    options = flags.FLAGS
    sheet_path = options.contact_sheet
    if sheet_path is None:
        sheet_path = os.path.join(options.data_dir or '', SHEET_NAME)
    # `look_at` reports a wrong --data_dir.
    if sheet_path and (options.contact_sheet or os.path.isdir(options.data_dir or '')):
        check_output_file(
            sheet_path, '--contact_sheet', [options.data_dir], '.png')
    shards = layout.Layout.of(options.flag_values_dict())
    found = look_at(options.data_dir, options.num_processes or len(os.sched_getaffinity(0)),
                    options.max_image_pixels, bool(sheet_path), shards)
    summary = {**summarise(options.data_dir, found, shards), 'contact_sheet': sheet_path}
    app.end_with_the_reader()
    print(json.dumps(summary, indent=2, ensure_ascii=False) if options.json else report(summary))
    # Drawn last, so that a failure to write the sheet does not lose the report.
    if sheet_path:
        info = schema.DatasetInfo.load(options.data_dir) or schema.IMAGENET
        draw_sheet(sheet_path, found, info.class_names, info.label_base)


if __name__ == '__main__':
    define_flags()
    app.run(main)
