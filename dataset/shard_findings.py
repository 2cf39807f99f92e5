"""Decodes the records of a shard and collects statistics and corrupt records."""
import collections
import dataclasses
import hashlib
from typing import Counter
from typing import Dict
from typing import List
from typing import Tuple
from typing import Union

import numpy as np

from common.errors import first_line
from dataset import contact_sheet
from dataset import image_files
from tfrecords import reader

HASH_BYTES = 8


@dataclasses.dataclass
class ShardFindings:
    """Content of a shard with N intact images.

    Attributes:
        labels: label (int or str) -> number of records.
        formats, modes: name -> number of images; modes are Pillow's, such as RGB and L.
        sizes: int32 [N, 2], width and height in pixels.
        hashes: int64 [N], hashes of the decoded pixels.
        indices: int64 [N], indices of the records of these images.
        corrupt: list of (record index, reason).
        thumbnails: label -> list of JPEG files of its first images.
        names: label -> class name in the records.
    """
    labels: Counter[Union[int, str]]
    formats: Counter[str]
    modes: Counter[str]
    sizes: np.ndarray
    hashes: np.ndarray
    indices: np.ndarray
    corrupt: List[Tuple[int, str]]
    thumbnails: Dict[int, List[bytes]]
    names: Dict[int, str]


def look_at_shard(path, form, labels_shown, max_pixels):
    """Returns the `ShardFindings` of a shard.

    Args:
        path: str.
        form: `record_format.RecordFormat`.
        labels_shown: labels to create thumbnails of; None for all.
        max_pixels: int; a larger image counts as corrupt.
    """
    counters = [collections.Counter() for _ in range(3)]
    labels, formats, modes = counters
    sizes, hashes, indices, corrupt = [], [], [], []
    thumbnails, names = collections.defaultdict(list), {}
    for index, (record, reason) in enumerate(reader.iterate_records(path, form.compression)):
        try:
            if reason is not None:
                raise ValueError(reason)
            encoded, label, name = _parse(record, form)
            image = _decode(encoded, max_pixels)
        except ValueError as error:
            corrupt.append((index, str(error)))
            continue
        labels[label] += 1
        formats[image.format] += 1
        modes[image.mode] += 1
        sizes.append(image.size)
        indices.append(index)
        rgb = image.convert('RGB')
        hashes.append(hashlib.blake2b(b'%d' % rgb.width + rgb.tobytes(),
                                      digest_size=HASH_BYTES).digest())
        names.setdefault(label, name)
        if ((labels_shown is None or label in labels_shown)
                and len(thumbnails[label]) < contact_sheet.IMAGES_PER_CLASS):
            thumbnails[label].append(contact_sheet.thumbnail(rgb))
    return ShardFindings(
        *counters, np.array(sizes, np.int32).reshape(-1, 2),
        np.frombuffer(b''.join(hashes), np.int64), np.array(indices, np.int64), corrupt,
        dict(thumbnails), names)


def _parse(record, form):
    """Returns the (encoded image, label, class name) of a record; ValueError gives the reason."""
    try:
        return form.parse(record)
    except ValueError as error:
        raise ValueError(f'it {error}') from None


def _decode(encoded, max_pixels):
    """Returns a loaded Pillow image; ValueError gives the reason why it is unusable."""
    try:
        image = image_files.load(encoded, max_pixels)
    except Exception as error:
        raise ValueError(f'its image cannot be decoded ({first_line(error)})') from None
    if image.format not in ('JPEG', 'MPO', 'PNG'):
        raise ValueError(f'its image is a {image.format}, neither a JPEG nor a PNG')
    return image
