"""Writes the shards of a dataset in parallel, each atomically, and resumes after interruptions.

A shard is first written into the directory schema.UNFINISHED_NAME, then its result file (one line
of JSON, and a line for each converted or rejected image), and then the shard is renamed to its
final path. A shard that has its final path and a result is complete and never written again.
"""
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import ctypes
import dataclasses
import hashlib
import json
import multiprocessing
from multiprocessing import sharedctypes
import os
import shutil
import signal
import sys
from typing import Any
from typing import List
from typing import Optional
from typing import Tuple

import tensorflow.compat.v1 as tf
import tqdm

from common import json_files
from common.errors import UserError
from common.errors import first_line
from common.files import PARTIAL
from common.files import renamed_when_whole
from common.files import whole_file
from dataset import image_files
from dataset import sources
from tfrecords import schema

POLL_SECS = 0.2
HASHED_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


class NoUsableImageError(UserError):
    """A shard or a class would be empty, so that no rerun with the same images can succeed."""


@dataclasses.dataclass
class Job:
    """The shards to write, and where.

    Attributes:
        source: `sources.ImageSource`.
        boxes: None or `imagenet.BoundingBoxes`.
        label_base: int, label of class 0.
        keep_png, turn_upright, decode_all, max_pixels, limit: arguments of `image_files.prepare`.
        output_dir: str; contains the directory schema.UNFINISHED_NAME.
        shards: list of (name, split, rows in the split's `ImageList`).
    """
    source: sources.ImageSource
    boxes: Any
    label_base: int
    keep_png: bool
    turn_upright: bool
    decode_all: bool
    max_pixels: int
    limit: Optional[image_files.Limit]
    output_dir: str
    shards: List[Tuple[str, str, Any]]

    @property
    def work_dir(self):
        return os.path.join(self.output_dir, schema.UNFINISHED_NAME)

    def path(self, index):
        return os.path.join(self.output_dir, self.shards[index][0])

    def result_path(self, index):
        return os.path.join(self.work_dir, f'{self.shards[index][0]}.jsonl')


def remove_partial(work_dir):
    """Removes the partial files that an interrupted run left behind."""
    for name in os.listdir(work_dir):
        if name.endswith(PARTIAL):
            os.remove(os.path.join(work_dir, name))


def write(job, num_processes):
    """Writes the missing shards and shows a progress bar.

    A process holds one image at a time; only the list of names grows with the dataset.

    Raises:
        NoUsableImageError: no image of a shard can be used.
        UserError: a shard cannot be written, a worker process died, or the user pressed Ctrl-C.
            Complete shards are kept for the next run.
    """
    todo = [index for index in range(len(job.shards)) if not _is_done(job, index)]
    num_images = [len(rows) for _, _, rows in job.shards]
    # One counter per shard needs no lock.
    progress = sharedctypes.RawArray('q', len(job.shards))
    initial = sum(num_images) - sum(num_images[index] for index in todo)
    executor = concurrent.futures.ProcessPoolExecutor(
        min(num_processes, max(1, len(todo))), multiprocessing.get_context('fork'),
        initializer=_start_process, initargs=(job, progress))
    with tqdm.tqdm(total=sum(num_images), initial=initial, unit=' images', smoothing=0.1,
                   mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
        try:
            waiting = {executor.submit(_write_shard, index) for index in todo}
            while waiting:
                done, waiting = concurrent.futures.wait(
                    waiting, POLL_SECS, concurrent.futures.FIRST_EXCEPTION)
                bar.update(initial + sum(progress) - bar.n)
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise UserError(f'{job.output_dir}: a worker process was killed (out of memory?); '
                            'rerun the command with a smaller --num_processes to '
                            'resume.') from error
        except KeyboardInterrupt:
            raise UserError(f'{job.output_dir}: interrupted; rerun the command to '
                            'resume.') from None
        finally:
            if sys.exc_info()[0]:
                for process in multiprocessing.active_children():
                    process.terminate()
            executor.shutdown()


def read_results(job):
    """Returns the results of all shards, a list of dicts (see `_write_shard`)."""
    return [_result(job, index) for index in range(len(job.shards))]


def _result(job, index):
    num_classes, path = len(job.source.class_names), job.result_path(index)
    counts = json_files.Kind(f'a list of {num_classes} integers', lambda value: (
        isinstance(value, list) and len(value) == num_classes
        and all(map(json_files.is_integer, value))))
    with open(path, encoding='utf-8', errors='surrogateescape') as file:
        return json_files.parse(
            file.readline(), path, 'remove the file and rerun the command',
            {'bytes': json_files.INTEGER, 'sha256': json_files.TEXT, 'class_counts': counts,
             'converted': json_files.INTEGER, 'rejected': json_files.INTEGER})


def report_lines(job):
    """Yields a line of JSON for each converted or rejected image."""
    for index in range(len(job.shards)):
        with open(job.result_path(index), encoding='utf-8') as file:
            file.readline()
            yield from file


def discard(job):
    """Removes everything that was written, and the output directory if it is then empty."""
    shutil.rmtree(job.work_dir)
    for index in range(len(job.shards)):
        if os.path.exists(job.path(index)):
            os.remove(job.path(index))
    if not os.listdir(job.output_dir):
        os.rmdir(job.output_dir)


def _is_done(job, index):
    try:
        return _result(job, index)['bytes'] == os.path.getsize(job.path(index))
    except (OSError, UserError):
        return False


# Job and counters of a worker process, inherited by fork rather than pickled.
_process = {}


def _start_process(job, progress):
    _process.update(job=job, progress=progress)
    # The parent handles Ctrl-C. If the parent is killed, its workers must not go on writing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write_shard(index):
    """Writes a shard and its result file.

    The result has 'bytes' and 'sha256' of the shard, 'class_counts' of its records, and the numbers
    of 'converted' and 'rejected' images.
    """
    job = _process['job']
    try:
        with renamed_when_whole(job.path(index), job.work_dir) as partial_path:
            class_counts, report = _write_records(job, index, partial_path)
            result = dict(
                bytes=os.path.getsize(partial_path), sha256=_sha256(partial_path),
                class_counts=class_counts,
                converted=sum(line['action'] == 'converted' for line in report),
                rejected=sum(line['action'] == 'rejected' for line in report))
            with whole_file(job.result_path(index)) as file:
                for line in (result, *report):
                    file.write(json.dumps(line, ensure_ascii=False) + '\n')
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f'{job.path(index)}: cannot be written ({first_line(error)}); make room or '
                        'choose another --output_dir, and rerun the command.') from error


def _write_records(job, index, path):
    """Returns (records per class, list of a dict for each converted or rejected image)."""
    name, _, rows = job.shards[index]
    class_counts, report = [0] * len(job.source.class_names), []
    with tf.io.TFRecordWriter(path) as writer:
        for row in rows:
            record, class_index = _record(job, index, row, report)
            if record is not None:
                writer.write(record)
                class_counts[class_index] += 1
            _process['progress'][index] += 1
    if not sum(class_counts):
        raise NoUsableImageError(
            f'{name}: none of its {len(rows)} images can be used (for example '
            f"{report[0]['file']}: {report[0]['detail']}); replace them.")
    return class_counts, report


def _record(job, index, row, report):
    """Returns (serialized record, class index) of an image; the record is None if unusable.

    Appends a dict to the list `report` if the image is converted or rejected.
    """
    shard, split, _ = job.shards[index]
    listed = job.source.images[split]
    name, class_index = listed.name(row), int(listed.classes[row])
    line = {'file': sources.text(name), 'class': job.source.class_names[class_index],
            'split': split, 'shard': shard}
    try:
        picture = image_files.prepare(
            listed.read(row), keep_png=job.keep_png, turn_upright=job.turn_upright,
            decode_all=job.decode_all, max_pixels=job.max_pixels, limit=job.limit)
    except image_files.BadImageError as error:
        report.append({**line, 'action': 'rejected', 'detail': str(error)})
        return None, class_index
    if picture.conversion:
        report.append({**line, 'action': 'converted', 'detail': picture.conversion})
    synset = job.source.synsets[class_index] if job.source.synsets else None
    return schema.serialize_example(
        encoded=picture.encoded, image_format=picture.image_format, height=picture.height,
        width=picture.width, channels=picture.channels,
        filename=os.path.basename(line['file']), label=job.label_base + class_index,
        text=job.source.class_names[class_index], synset=synset,
        boxes=job.boxes and job.boxes.of(name, synset)), class_index


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(HASHED_BYTES), b''):
            digest.update(block)
    return digest.hexdigest()
