"""A contender of `benchmarks.protocol`: the usual loader of PyTorch.

A torch DataLoader with one process per core. The processes read JPEG files, decode them with
Pillow, crop, resize and mirror them at random, and stack uint8 batches. Any interpreter with torch
can run it. Without torchvision, this module crops and mirrors; AutoAugment is timm's.
"""
import argparse
import math
import os
import random
import time

from benchmarks import protocol

PREFETCHED_BATCHES = 2    # per process, the default of DataLoader


def parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument('--helpfull', action='help', help='the same as --help')
    parser.add_argument('--images_dir', required=True, help='directory of JPEG files')
    parser.add_argument('--image_size', type=int, required=True)
    parser.add_argument('--batch_size', type=int, required=True)
    parser.add_argument('--augment', choices=('autoaugment',))
    return parser.parse_args()


class Photos:
    """A map-style dataset: index -> uint8 tensor [3, image_size, image_size]."""

    def __init__(self, paths, transforms):
        self._paths = paths
        self._transforms = transforms

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, index):
        from PIL import Image
        with Image.open(self._paths[index]) as file:
            image = file.convert('RGB')
        for transform in self._transforms:
            image = transform(image)
        return image


class CropAndFlip:
    """torchvision's RandomResizedCrop and RandomHorizontalFlip, with their defaults."""

    def __init__(self, image_size):
        self._size = [image_size] * 2

    def __call__(self, image):
        from PIL import Image
        image = image.resize(self._size, Image.BICUBIC, self._box(*image.size))
        return image.transpose(Image.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image

    def _box(self, width, height):
        for _ in range(10):
            area = width * height * random.uniform(0.08, 1.0)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            size = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if size[0] <= width and size[1] <= height:
                left, top = random.randint(0, width - size[0]), random.randint(0, height - size[1])
                return left, top, left + size[0], top + size[1]
        return 0, 0, width, height


def to_tensor(image):
    import numpy as np
    import torch
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def make_transforms(options):
    """Returns functions to apply in turn to a Pillow image; the last one returns a tensor."""
    try:
        from torchvision import transforms
    except ImportError:
        found = [CropAndFlip(options.image_size)]
    else:
        found = [transforms.RandomResizedCrop(
            options.image_size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip()]
    if options.augment:
        from timm.data import auto_augment
        # Policy v0, except that a higher level of Posterize keeps fewer bits. v0 keeps no bit at
        # level 2, which Pillow 13 refuses.
        found.append(auto_augment.auto_augment_transform('v0r', {}))
    return [*found, to_tensor]


def make_loader(options, num_workers):
    import torch.utils.data
    paths = [os.path.join(options.images_dir, name) for name in os.listdir(options.images_dir)]
    photos = Photos(paths, make_transforms(options))
    # A practically endless epoch, because the buffers drain at the end of an epoch.
    sampler = torch.utils.data.RandomSampler(photos, replacement=True, num_samples=1 << 40)
    return torch.utils.data.DataLoader(
        photos, options.batch_size, sampler=sampler, num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES)


def main():
    options = parse_options()
    start = time.monotonic()
    num_workers = len(os.sched_getaffinity(0))
    batches = iter(make_loader(options, num_workers))
    next(batches)

    def step():
        next(batches)

    protocol.serve(step, dict(first_batch_secs=time.monotonic() - start,
                              buffered_batches=PREFETCHED_BATCHES * num_workers))


if __name__ == '__main__':
    main()
