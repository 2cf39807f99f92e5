"""Writes the shards of a dataset in parallel, each of them whole or not at all.

A shard is written in the folder schema.UNFINISHED_NAME. Then its result (one line of JSON, and a
line for each image that was converted or rejected) is written there too, and the shard is renamed
to its place. A shard that is in its place and has a result is never written again.
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
    """A shard or a class would be empty: no attempt with the same images can succeed."""


@dataclasses.dataclass
class Job:
    """What is to be written where.

    Attributes:
        source: `sources.ImageSource`.
        boxes: None or `imagenet.BoundingBoxes`.
        label_base: int, label of class 0.
        keep_png, turn_upright, decode_all, max_pixels, limit: of `image_files.prepare`.
        output_dir: str, with its folder schema.UNFINISHED_NAME.
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
    """Removes the files that an interrupted run was writing."""
    for name in os.listdir(work_dir):
        if name.endswith(PARTIAL):
            os.remove(os.path.join(work_dir, name))


def write(job, num_processes):
    """Writes the shards that are not there yet, and shows how far it is.

    Memory does not grow with the images, but for their names: a process holds one image at a time.

    Raises:
        NoUsableImageError: none of the images of a shard can be used.
        UserError: a shard cannot be written; a process died; an interruption (Ctrl-C). What is
            whole stays for the next attempt.
    """
    todo = [index for index in range(len(job.shards)) if not _is_done(job, index)]
    num_images = [len(rows) for _, _, rows in job.shards]
    # One counter a shard: no process ever waits for another.
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
            raise UserError('A process that wrote shards was ended from outside, perhaps for want '
                            'of memory; run the command again to go on, with a smaller '
                            '--num_processes.') from error
        except KeyboardInterrupt:
            raise UserError('Interrupted; run the command again to go on.') from None
        finally:
            if sys.exc_info()[0]:
                for process in multiprocessing.active_children():
                    process.terminate()
            executor.shutdown()


def read_results(job):
    """The results of all shards, a list of dicts; see `_write_shard`."""
    return [_result(job, index) for index in range(len(job.shards))]


def _result(job, index):
    num_classes, path = len(job.source.class_names), job.result_path(index)
    counts = json_files.Kind(f'a list of {num_classes} whole numbers', lambda value: (
        isinstance(value, list) and len(value) == num_classes
        and all(map(json_files.is_integer, value))))
    with open(path, encoding='utf-8', errors='surrogateescape') as file:
        return json_files.parse(
            file.readline(), path, 'remove the file, and run the command again',
            {'bytes': json_files.INTEGER, 'sha256': json_files.TEXT, 'class_counts': counts,
             'converted': json_files.INTEGER, 'rejected': json_files.INTEGER})


def report_lines(job):
    """Yields a line of JSON for each image that was converted or rejected."""
    for index in range(len(job.shards)):
        with open(job.result_path(index), encoding='utf-8') as file:
            file.readline()
            yield from file


def discard(job):
    """Removes everything that was written, and the folder if it is empty then."""
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


# What a process of the pool works on: it is forked with it, nothing is sent.
_process = {}


def _start_process(job, progress):
    _process.update(job=job, progress=progress)
    # Ctrl-C is for the parent; and if that is killed, nobody is left to write half a shard.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _write_shard(index):
    """Writes a shard and its result.

    The result: 'bytes' and 'sha256' of the shard, 'class_counts' of its records, and how many
    images were 'converted' and 'rejected'.
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
        raise UserError(f'{job.path(index)} cannot be written ({first_line(error)}); make room or '
                        'choose another --output_dir, and run the command again.') from error


def _write_records(job, index, path):
    """Returns the number of records of each class, and a dict for each image that differs."""
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
            f'None of the {len(rows)} images of {name} can be used, such as '
            f"{report[0]['file']}: {report[0]['detail']}; replace them.")
    return class_counts, report


def _record(job, index, row, report):
    """(serialised record, class index) of an image; (None, class index) if it cannot be used."""
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
