"""Creates TFRecords from the files of ImageNet, or from images in one directory per class.

    python3.7 -m dataset.create --source=folder --raw_dir=PHOTOS --output_dir=DATA
    python3.7 -m dataset.create --source=imagenet --raw_dir=ILSVRC2012 --output_dir=DATA

Writes the shards for main.py, labels.txt, dataset_info.json, and create_report.jsonl, which lists
every converted or unusable image. --seed decides which shard an image is in. The bytes of a shard
depend only on the images and the flags. After an interruption, the same command writes the missing
shards, byte for byte as an uninterrupted run would.
"""
import json
import os
import shutil

from absl import flags
from absl import logging
import numpy as np
import tensorflow.compat.v1 as tf

from common import app
from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.files import whole_file
from common.paths import check_no_input
from common.paths import check_output_folder
from common.paths import is_inside
from dataset import image_files
from dataset import imagenet
from dataset import shards
from dataset import sources
from tfrecords import image_formats
from tfrecords import schema

REPORT_NAME = 'create_report.jsonl'
PLAN_NAME = 'plan.json'
IMAGES_PER_SHARD = 1000
SMALLEST_SHARD = 16                    # images, unless the split has fewer
NUM_SHOWN = 12                         # class names
MIN_SHARDS = 8                         # if there are enough images, so that ranks read whole files
# The usual numbers of shards of ImageNet.
IMAGENET_SHARDS = {schema.TRAIN: 1024, schema.VALIDATION: 128}


def define_flags():
    flags.DEFINE_enum('source', None, ('imagenet', 'folder'), 'imagenet: the files of ILSVRC 2012; '
                      'folder: images in one directory per class.')
    flags.DEFINE_string('raw_dir', None, 'Directory of the images or tar files.')
    flags.DEFINE_string('output_dir', None, 'Directory of the new dataset; created if missing.')
    flags.DEFINE_float('validation_fraction', None, 'folder: share of the images of each class '
                       'that becomes the validation split if there is no directory validation; '
                       f'default: {sources.VALIDATION_FRACTION}.')
    flags.DEFINE_integer('seed', 0, 'Random seed of the split and the order of the images.',
                         lower_bound=0, upper_bound=app.LARGEST_INTEGER)
    flags.DEFINE_string('synset_labels', None, 'imagenet: file with the synset of each validation '
                        'image, one per line in the order of the image names; default: one in '
                        '--raw_dir, such as synset_labels.txt or LOC_val_solution.csv.')
    flags.DEFINE_string('synset_names', None, 'imagenet: file of class names, with lines like '
                        '"n01440764 tench"; default: the synsets are the names.')
    flags.DEFINE_string('bounding_boxes', None, 'imagenet: directory of the XML annotations, or '
                        'file of lines "<image>.JPEG,xmin,ymin,xmax,ymax" in fractions.')
    flags.DEFINE_integer('label_base', 1, 'Label of the first class.', lower_bound=0, upper_bound=1)
    flags.DEFINE_integer('num_train_shards', None, 'Number of training shards; default: one per '
                         f'{IMAGES_PER_SHARD} images, and at least {MIN_SHARDS} if each has '
                         f'{SMALLEST_SHARD} images; ImageNet 1024.', lower_bound=1,
                         upper_bound=99999)
    flags.DEFINE_integer('num_validation_shards', None, 'Number of validation shards; default: one '
                         f'per {IMAGES_PER_SHARD} images, and at least {MIN_SHARDS} if each has '
                         f'{SMALLEST_SHARD} images; ImageNet 128.', lower_bound=1,
                         upper_bound=99999)
    flags.DEFINE_enum('verify', 'structure', ('structure', 'decode'), 'Check of files that need no '
                      'conversion. structure: a JPEG is complete from its tables to its end '
                      'marker; decode: it is decoded too, at a tenth of the speed.')
    flags.DEFINE_bool('keep_png', False, 'Store opaque 8-bit PNG files unchanged instead of '
                      'converting them to JPEG: lossless, larger and slower to read.')
    flags.DEFINE_enum('class_order', sources.BY_NAME, sources.CLASS_ORDERS, 'folder: order of the '
                      'classes. name: alphabetical, 10 before 2; number: 2 before 10.')
    flags.DEFINE_integer('max_image_pixels', image_formats.MAX_IMAGE_PIXELS, 'Skip images with '
                         'more pixels (height x width). The limit protects against decompression '
                         'bombs.', lower_bound=1, upper_bound=app.LARGEST_INTEGER)
    flags.DEFINE_integer('max_short_side', None, 'Resize images whose shorter side has more pixels '
                         'to this many, and store others as they are. Training reads them faster. '
                         'Default: every size is stored.', lower_bound=8,
                         upper_bound=app.LARGEST_INTEGER)
    flags.DEFINE_integer('jpeg_quality', None, 'With --max_short_side: JPEG quality of the resized '
                         f'images; default: {image_files.RESIZED_JPEG_QUALITY}.', lower_bound=1,
                         upper_bound=100)
    flags.DEFINE_integer('num_processes', None, 'Number of converting processes; default: one per '
                         'core.', lower_bound=1)


def main(_):
    options = flags.FLAGS
    _check_flags(options)
    if options.source == 'imagenet':
        source = imagenet.listing(options.raw_dir, options.synset_labels, options.synset_names)
        boxes = imagenet.BoundingBoxes(options.bounding_boxes) if options.bounding_boxes else None
    else:
        source = sources.folder(options.raw_dir, options.validation_fraction, options.seed,
                                options.class_order, options.output_dir)
        boxes = None
        _show_order(source.class_names, options.class_order)
    plan = make_plan(options, source)
    job = shards.Job(
        source=source, boxes=boxes, label_base=options.label_base, keep_png=options.keep_png,
        turn_upright=options.source == 'folder', decode_all=options.verify == 'decode',
        max_pixels=options.max_image_pixels, limit=_limit(options),
        output_dir=options.output_dir, shards=_shard(source, plan['num_shards'], options.seed))

    if _is_complete(options.output_dir, plan):
        print(f'{options.output_dir}: already complete')
        return
    _claim(options.output_dir, plan)
    try:
        shards.write(job, options.num_processes or len(os.sched_getaffinity(0)))
        summary = _finish(job, plan)
    except shards.NoUsableImageError:
        shards.discard(job)
        raise
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f'{options.output_dir}: cannot be written ({first_line(error)}); make room '
                        'or choose another --output_dir, and rerun the command.') from error
    print(f"{options.output_dir}: {summary['train']} training and {summary['validation']} "
          f'validation images of {len(source.class_names)} classes in {len(job.shards)} shards'
          + (f', short side at most {job.limit.short_side} pixels' if job.limit else ''))
    if summary['converted'] or summary['rejected'] or source.ignored:
        print(f"{summary['converted']} images converted, {summary['rejected']} skipped, "
              f'{len(source.ignored)} other files and directories ignored; '
              f'see {os.path.join(options.output_dir, REPORT_NAME)}')


def _check_flags(options):
    if not options.source:
        raise UserError('--source: not set; choose imagenet or folder.')
    if not options.output_dir:
        raise UserError('--output_dir: not set; name the directory to write to.')
    check_output_folder(options.output_dir, '--output_dir')
    for name in (schema.LABELS_NAME, schema.DATASET_INFO_NAME, REPORT_NAME):
        check_no_input(
            os.path.join(options.output_dir, name), f'--output_dir={options.output_dir}',
            [options.synset_labels, options.synset_names, options.bounding_boxes])
    if options.jpeg_quality is not None and options.max_short_side is None:
        raise UserError(f'--jpeg_quality={options.jpeg_quality}: applies to resized images only; '
                        'set --max_short_side too, or omit --jpeg_quality.')
    fraction = options.validation_fraction
    if fraction is not None and not 0 < fraction < 1:
        raise UserError(f'--validation_fraction={fraction}: out of range; choose a number above 0 '
                        'and below 1.')
    unused = {'imagenet': ('validation_fraction', 'class_order'),
              'folder': ('synset_labels', 'synset_names', 'bounding_boxes')}[options.source]
    for name in unused:
        if options[name].present:
            raise UserError(f'--{name}: has no effect with --source={options.source}; omit it.')
    if options.source != 'folder':
        return
    sources.check_folder(options.raw_dir)
    splits = sources.split_folders(options.raw_dir)
    places = splits.values() if schema.TRAIN in splits else [options.raw_dir]
    if any(is_inside(options.output_dir, place) for place in places):
        raise UserError(f'--output_dir={options.output_dir}: is inside --raw_dir, where it would '
                        'become a class; choose a directory outside.')


def _limit(options):
    """Returns the `image_files.Limit` that the flags set, or None."""
    if options.max_short_side is None:
        return None
    return image_files.Limit(options.max_short_side,
                             options.jpeg_quality or image_files.RESIZED_JPEG_QUALITY)


def _show_order(class_names, order):
    """Prints the class order if all names are numbers, or if sorting by number would change it."""
    by_number = sources.in_order(class_names, sources.BY_NUMBER)
    is_sorted = list(class_names) == by_number
    if not is_sorted or all(name.isdigit() for name in class_names):
        shown = [*class_names[:NUM_SHOWN], '...'] if len(class_names) > NUM_SHOWN else class_names
        print(f"classes by {order}: {', '.join(shown)}" + (
            '' if is_sorted else f'; --class_order={sources.BY_NUMBER} sorts them by number'))


def make_plan(options, source):
    """Returns everything that determines the bytes of the shards, as a JSON-compatible dict.

    Raises:
        UserError: a split has no images, or fewer images than shards.
    """
    num_shards = {}
    for split in schema.SPLITS:
        given = getattr(options, f'num_{split}_shards')
        num_images = len(source.rows[split])
        if not num_images:
            raise UserError(f'--raw_dir={options.raw_dir}: no {split} images; provide at least two '
                            'images of a class, or directories train and validation.')
        num_shards[split] = given or default_num_shards(
            num_images, IMAGENET_SHARDS[split] if source.synsets else None)
        if num_shards[split] > num_images:
            raise UserError(f'--num_{split}_shards={given}: more than the {num_images} images of '
                            'the split; choose fewer, or omit the flag.')
    limit = _limit(options)
    # Without a limit the keys are left out, so that the plan equals one of an earlier version.
    limits = dict(max_short_side=limit.short_side, jpeg_quality=limit.jpeg_quality) if limit else {}
    if options.max_image_pixels != image_formats.MAX_IMAGE_PIXELS:
        limits['max_image_pixels'] = options.max_image_pixels
    return dict(
        **limits, source=options.source, images={split: source.images[split].digest()
                                       for split in schema.SPLITS},
        num_images={split: len(source.rows[split]) for split in schema.SPLITS},
        class_names=list(source.class_names), num_shards=num_shards, seed=options.seed,
        label_base=options.label_base, verify=options.verify, keep_png=options.keep_png,
        bounding_boxes=options.bounding_boxes)


def default_num_shards(num_images, customary=None):
    """Returns the number of shards of a split.

    Args:
        num_images: int.
        customary: int, used if every shard then has SMALLEST_SHARD images; None for no such number.
    """
    if customary and num_images >= customary * SMALLEST_SHARD:
        return customary
    by_size = -(-num_images // IMAGES_PER_SHARD)
    return max(by_size, min(MIN_SHARDS, num_images // SMALLEST_SHARD), 1)


def _shard(source, num_shards, seed):
    """Returns the shards, a list of (name, split, rows); the order of images is random."""
    sharded = []
    for split in schema.SPLITS:
        order = np.random.RandomState(seed).permutation(source.rows[split])
        sharded += [(schema.shard_name(split, index, num_shards[split]), split, rows)
                    for index, rows in enumerate(np.array_split(order, num_shards[split]))]
    return sharded


def _is_complete(output_dir, plan):
    """Returns whether the dataset of this plan is complete; UserError if there is another one."""
    if not os.path.isdir(output_dir):
        return False
    names = os.listdir(output_dir)
    if schema.UNFINISHED_NAME in names:
        return False
    expected = {schema.shard_name(split, index, count)
                for split, count in plan['num_shards'].items() for index in range(count)}
    info = schema.DatasetInfo.load(output_dir)
    if info and expected <= set(names) and _read_plan(
            os.path.join(output_dir, REPORT_NAME)) == plan:
        return True
    others = [name for name in sorted(names) if schema.is_shard_name(name)]
    if others or info:
        raise UserError(f'{output_dir}: contains a dataset of other images or flags '
                        f'({others[0] if others else info.name}); choose another --output_dir, or '
                        'delete it.')
    return False


def _read_plan(path):
    """Returns the plan in the first line of a file, or None."""
    try:
        with open(path, encoding='utf-8') as file:
            line = json_files.value_of(file.readline())
    except (OSError, ValueError):
        return None
    return line.get('plan') if isinstance(line, dict) else None


def _claim(output_dir, plan):
    """Creates the directory, or resumes an interrupted run of the same plan.

    Raises:
        UserError: the directory cannot be written, or contains the unfinished dataset of another
            plan.
    """
    work_dir = os.path.join(output_dir, schema.UNFINISHED_NAME)
    plan_path = os.path.join(work_dir, PLAN_NAME)
    if os.path.exists(plan_path):
        if _read_plan(plan_path) != plan:
            raise UserError(f'{output_dir}: contains an unfinished dataset of other images or '
                            'flags; rerun its command, choose another --output_dir, or delete it.')
        logging.info('Resuming the unfinished dataset in %s.', output_dir)
        shards.remove_partial(work_dir)
        return
    made = not os.path.exists(output_dir)
    try:
        os.makedirs(work_dir, exist_ok=True)
        with whole_file(plan_path) as file:
            json.dump({'plan': plan}, file)
    except (OSError, tf.errors.OpError) as error:
        if made:
            shutil.rmtree(output_dir, ignore_errors=True)
        raise UserError(f'--output_dir={output_dir}: cannot be written ({first_line(error)}); '
                        'choose another directory.') from error


def _finish(job, plan):
    """Writes the report, labels.txt and, last, dataset_info.json; returns the numbers of images."""
    done = shards.read_results(job)
    counts = {split: sum((np.array(result['class_counts']) for (_, its_split, _), result in
                          zip(job.shards, done) if its_split == split))
              for split in schema.SPLITS}
    _check_no_class_is_empty(job, counts[schema.TRAIN])
    summary = dict(train=int(counts[schema.TRAIN].sum()),
                   validation=int(counts[schema.VALIDATION].sum()),
                   converted=sum(result['converted'] for result in done),
                   rejected=sum(result['rejected'] for result in done))
    with whole_file(os.path.join(job.output_dir, REPORT_NAME)) as file:
        file.write(json.dumps({'plan': plan, **summary}, ensure_ascii=False) + '\n')
        for name, why in job.source.ignored:
            file.write(json.dumps({'file': name, 'action': 'ignored', 'detail': why},
                                  ensure_ascii=False) + '\n')
        for line in shards.report_lines(job):
            file.write(line)
    with whole_file(os.path.join(job.output_dir, schema.LABELS_NAME)) as file:
        file.write('\n'.join(job.source.class_names) + '\n')
    schema.DatasetInfo(
        name=job.source.name, num_classes=len(job.source.class_names),
        class_names=job.source.class_names, label_base=job.label_base,
        num_images={split: summary[split] for split in schema.SPLITS},
        sha256={name: result['sha256'] for (name, _, _), result in zip(job.shards, done)},
        max_short_side=job.limit and job.limit.short_side,
        jpeg_quality=job.limit and job.limit.jpeg_quality,
        class_counts={split: counts[split].tolist() for split in schema.SPLITS},
    ).save(job.output_dir)
    shutil.rmtree(os.path.join(job.output_dir, schema.UNFINISHED_NAME))
    return summary


def _check_no_class_is_empty(job, num_train_images):
    """Raises shards.NoUsableImageError if a class has no usable training image."""
    empty = [name for name, count in zip(job.source.class_names, num_train_images) if not count]
    for entry in map(json_files.value_of, shards.report_lines(job) if empty else ()):
        if entry['class'] == empty[0] and entry['split'] == schema.TRAIN:
            raise shards.NoUsableImageError(
                f"{empty[0]}: no training image of this class can be used (for example "
                f"{entry['file']}: {entry['detail']}); replace them, or remove the class.")


if __name__ == '__main__':
    define_flags()
    app.run(main)
