"""Images, records and shards that are damaged at random, the same ones each time."""
import io
import os
import struct

import numpy as np
from PIL import Image
import tensorflow.compat.v1 as tf

from tfrecords import schema

FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'TIFF', 'WEBP')
_EXTENSIONS = {'JPEG': 'jpg', 'TIFF': 'tif'}


def whole_images(formats=FORMATS):
    """(format, file) of small pictures: several modes, progressive JPEGs, interlaced PNGs."""
    pixels = np.random.RandomState(0).randint(0, 256, [24, 31, 3]).astype(np.uint8)
    pixels[:, :16] //= 4
    images = []
    for name in formats:
        for mode in ('RGB', 'L', 'P'):
            options = [{}, {'progressive': True}, {'optimize': True}] if name == 'JPEG' else [{}]
            for option in options:
                if (name, mode) != ('JPEG', 'P'):
                    file = io.BytesIO()
                    Image.fromarray(pixels).convert(mode).save(file, name, **option)
                    images.append((name, file.getvalue()))
    return images


def mutated(content, random):
    """`content` with one to four damages: bits, bytes, numbers, cuts, insertions, swaps."""
    content = bytearray(content)
    for _ in range(random.randint(1, 4)):
        size = max(len(content), 1)
        # Headers are small and matter most.
        place = random.randint(min(size, 64)) if random.rand() < 0.5 else random.randint(size)
        kind = random.randint(7)
        if kind == 0 and content:
            content[place] ^= 1 << random.randint(8)
        elif kind == 1 and content:
            content[place] = random.choice([0, 1, 0x7f, 0x80, 0xff, 0xd9, 0xda])
        elif kind == 2:
            content[place:place + 4] = struct.pack(
                random.choice(['<I', '>I']),
                random.choice([0, 1, 2 ** 15, 2 ** 16 - 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1]))
        elif kind == 3:
            del content[place:]
        elif kind == 4:
            del content[place:place + random.randint(1, 40)]
        elif kind == 5:
            content[place:place] = random.bytes(random.randint(1, 40))
        else:
            other = random.randint(size)
            content[place:place + 16], content[other:other + 16] = (
                content[other:other + 16], content[place:place + 16])
    return bytes(content)


def write_images(folder, count, random, formats=FORMATS):
    """Writes `count` damaged images; returns their paths."""
    whole = whole_images(formats)
    os.makedirs(folder, exist_ok=True)
    paths = []
    for index in range(count):
        name, content = whole[index % len(whole)]
        extension = _EXTENSIONS.get(name, name.lower())
        paths.append(os.path.join(folder, f'{index:04d}.{extension}'))
        with open(paths[-1], 'wb') as file:
            file.write(mutated(content, random))
    return paths


def _record(encoded, label):
    return schema.serialize_example(
        encoded=encoded, image_format='JPEG', height=24, width=31, channels=3, filename='x',
        label=label, text='x')


def write_records(path, count, random):
    """Writes a shard of records whose image or whose message is damaged, and no checksum wrong."""
    whole = whole_images(('JPEG', 'PNG'))
    with tf.io.TFRecordWriter(path) as writer:
        for index in range(count):
            encoded, label = whole[index % len(whole)][1], 1 + index % 10
            if index % 2:
                writer.write(_record(mutated(encoded, random), label))
            else:
                writer.write(mutated(_record(encoded, label), random))


def write_damaged_shard(path, num_records, random):
    """Writes a shard of good records, and then damages the file."""
    whole = whole_images(('JPEG', 'PNG'))
    with tf.io.TFRecordWriter(path) as writer:
        for index in range(num_records):
            writer.write(_record(whole[random.randint(len(whole))][1], 1 + index % 10))
    with open(path, 'rb') as file:
        content = mutated(file.read(), random)
    with open(path, 'wb') as file:
        file.write(content)
