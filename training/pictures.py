"""Pictures of images and of confusion matrices for TensorBoard, drawn with Pillow."""
import io
import math

import numpy as np
from PIL import Image
from PIL import ImageDraw

from dataset import contact_sheet

GAP = 2                # pixels between images
CELL = 30              # pixels, height and width of a cell of the confusion matrix
MAX_NAME_WIDTH = 150   # pixels
FONT_SIZE = 11
# Colors of cells on and off the diagonal; the smaller the share of the class, the lighter.
_RIGHT, _WRONG = np.array([33, 102, 172]), np.array([178, 24, 43])
JPEG_QUALITY = 90


def grid(images):
    """Returns images side by side, in about as many rows as columns, as a Pillow image.

    Args:
      images: uint8 [count, height, width, 3].
    """
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full([rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3], 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top:top + height, left:left + width] = image
    return Image.fromarray(sheet)


def confusion(matrix, names):
    """Returns a confusion matrix as a Pillow image, each cell colored by its share of the row.

    Args:
      matrix: [classes, classes], number of images of the row's class classified as the column's.
      names: of the classes.
    """
    num_classes, font = len(matrix), contact_sheet.load_font(FONT_SIZE)
    labels = [_label(name, font) for name in names]
    margin = max(label.width for label in labels) + 2 * GAP
    size = margin + num_classes * CELL + GAP
    picture = Image.new('RGB', (size, size), 'white')
    pen = ImageDraw.Draw(picture)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for row, label in enumerate(labels):
        place = margin + row * CELL
        picture.paste(label, (margin - GAP - label.width, place))
        picture.paste(label.transpose(Image.ROTATE_90), (place, margin - GAP - label.width))
        for column in range(num_classes):
            color, share = _RIGHT if row == column else _WRONG, shares[row, column]
            # The square root keeps single mistakes visible.
            fill = tuple((255 - (255 - color) * math.sqrt(share)).astype(int))
            left = margin + column * CELL
            pen.rectangle([left, place, left + CELL - 1, place + CELL - 1], fill)
            if matrix[row, column]:
                text = f'{int(matrix[row, column])}'
                pen.text((left + (CELL - pen.textlength(text, font)) // 2,
                          place + (CELL - FONT_SIZE) // 2), text,
                         'white' if share > 0.4 else 'black', font)
    return picture


def _label(name, font):
    """Returns a picture of a class's name as high as a cell, cut at MAX_NAME_WIDTH."""
    text = contact_sheet.drawable(name, font)
    pen = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    while pen.textlength(text, font) > MAX_NAME_WIDTH:
        text = text[:-1]
    label = Image.new('RGB', (int(pen.textlength(text, font)) + 1, CELL), 'white')
    ImageDraw.Draw(label).text((0, (CELL - FONT_SIZE) // 2), text, 'black', font)
    return label


def encode(picture, file_format='PNG'):
    """Returns a Pillow image as the bytes of a file in a format of Pillow's."""
    file = io.BytesIO()
    picture.save(file, file_format, **({'quality': JPEG_QUALITY} if file_format == 'JPEG' else {}))
    return file.getvalue()
