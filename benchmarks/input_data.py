"""Writes the data of the input benchmarks: shards, shards of smaller images, and JPEG files.

The images are the photographs of `benchmarks.photos`, resized to 500 x 375 pixels and encoded with
quality 97. They have 103 kB each; an ImageNet image has 110 kB on average, at 469 x 387 pixels.
"""
import io
import os

from PIL import Image
import tensorflow.compat.v1 as tf

from benchmarks import photos
from dataset import image_files
from tfrecords import schema

IMAGE_WIDTH, IMAGE_HEIGHT = 500, 375
JPEG_QUALITY = 97
SHORT_SIDE = 288
NUM_SHARDS = 16
RECORDS_PER_SHARD = 100
IMAGE_SIZE = 224
BATCH_SIZE = 32

# Directories of the shards, the shards of smaller images, and the JPEG files.
FULL, SMALL, FILES = 'full', 'small', 'files'


def make_pictures():
    """Returns the photographs as encoded JPEGs, a list of `image_files.Picture`."""
    pictures = []
    for photo in photos.load():
        side = (IMAGE_WIDTH - IMAGE_HEIGHT) // 2
        photo = photo.resize([IMAGE_WIDTH, IMAGE_WIDTH], Image.BICUBIC).crop(
            [0, side, IMAGE_WIDTH, side + IMAGE_HEIGHT])
        file = io.BytesIO()
        photo.save(file, 'JPEG', quality=JPEG_QUALITY)
        pictures.append(image_files.prepare(file.getvalue()))
    return pictures


def write_shards(data_dir, pictures):
    """Writes pictures as training shards and links the same files as validation shards."""
    os.mkdir(data_dir)
    for shard in range(NUM_SHARDS):
        name = os.path.join(data_dir, schema.shard_name(schema.TRAIN, shard, NUM_SHARDS))
        with tf.io.TFRecordWriter(name) as writer:
            for record in range(RECORDS_PER_SHARD):
                index = (shard + record) % len(pictures)
                picture = pictures[index]
                writer.write(schema.serialize_example(
                    encoded=picture.encoded, image_format=picture.image_format,
                    height=picture.height, width=picture.width, channels=picture.channels,
                    filename=f'{index}.jpg', label=1 + index, text=''))
        os.link(name, os.path.join(
            data_dir, schema.shard_name(schema.VALIDATION, shard, NUM_SHARDS)))


def write_data(work_dir):
    """Writes the same pictures as shards, as shards of smaller images and as JPEG files."""
    pictures = make_pictures()
    write_shards(os.path.join(work_dir, FULL), pictures)
    limit = image_files.Limit(SHORT_SIDE)
    write_shards(os.path.join(work_dir, SMALL), [
        image_files.prepare(picture.encoded, limit=limit) for picture in pictures])
    os.mkdir(os.path.join(work_dir, FILES))
    for index in range(NUM_SHARDS * RECORDS_PER_SHARD):
        with open(os.path.join(work_dir, FILES, f'{index}.jpg'), 'wb') as file:
            file.write(pictures[index % len(pictures)].encoded)
