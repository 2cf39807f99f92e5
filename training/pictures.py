"""Draws image grids, confusion matrices and range-test curves with Pillow."""
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
# Colors of cells on and off the diagonal; a smaller share of the class is lighter.
_RIGHT, _WRONG = np.array([33, 102, 172]), np.array([178, 24, 43])
JPEG_QUALITY = 90
_CURVE_SIZE = 640, 400                            # pixels
_LEFT, _TOP, _NUM_TICKS = 60, 30, 5
_CURVE, _MARK, _FAINT = (33, 102, 172), (178, 24, 43), (190, 190, 190)


def grid(images):
    """Returns a Pillow image with the given images in a nearly square grid.

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
      names: list of class names.
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


def range_test(found):
    """Returns the plot of a range test, losses over learning rates, as a Pillow image.

    Dots show the raw losses and a curve the smoothed ones. Vertical lines mark the suggested rate
    and the rate of the lowest loss.

    Args:
      found: a `lr_range.Finding`.
    """
    picture = Image.new('RGB', _CURVE_SIZE, 'white')
    pen, font = ImageDraw.Draw(picture), contact_sheet.load_font(FONT_SIZE)
    if not len(found.rates):
        return picture
    logs = np.log10(found.rates)
    xs = np.interp(logs, [logs[0], logs[-1] + 1e-9], [_LEFT, _CURVE_SIZE[0] - _TOP])
    # The axis covers the curve only; outlying dots would flatten it.
    low, high = found.smoothed.min(), found.smoothed.max()
    margin = 0.2 * (high - low) + 1e-9
    bottom = _CURVE_SIZE[1] - _TOP
    scale = (bottom - _TOP) / (high - low + 2 * margin)

    def height_of(loss):
        return bottom - scale * (loss - low + margin)

    for loss in np.linspace(low, high, _NUM_TICKS):
        pen.line([_LEFT, height_of(loss), xs[-1], height_of(loss)], _FAINT)
        pen.text((GAP, height_of(loss) - FONT_SIZE // 2), f'{loss:.4g}', 'black', font)
    for power in range(int(np.ceil(logs[0])), int(np.floor(logs[-1])) + 1):
        x = np.interp(power, logs, xs)
        pen.line([x, _TOP, x, bottom], _FAINT)
        pen.text((x + GAP, bottom + GAP), f'{10.0 ** power:g}', 'black', font)
    pen.text((GAP, GAP), 'loss', 'black', font)
    pen.text((_LEFT, bottom + GAP + FONT_SIZE + GAP), 'base_learning_rate', 'black', font)
    for x, loss in zip(xs, found.losses):
        if _TOP < height_of(loss) < bottom:
            pen.ellipse([x - 1, height_of(loss) - 1, x + 1, height_of(loss) + 1], 'gray')
    pen.line([(x, height_of(loss)) for x, loss in zip(xs, found.smoothed)], _CURVE, 2)
    for name, rate, y in (('suggested', found.suggested, GAP),
                          ('lowest loss', found.lowest, GAP + FONT_SIZE)):
        if rate:
            x = np.interp(np.log10(rate), logs, xs)
            pen.line([x, _TOP, x, bottom], _MARK)
            pen.text((x + GAP, y), f'{name}: {rate:.2g}', _MARK, font)
    return picture


def _label(name, font):
    """Returns a Pillow image of a class name, as high as a cell and cut at MAX_NAME_WIDTH."""
    text = contact_sheet.drawable(name, font)
    pen = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    while pen.textlength(text, font) > MAX_NAME_WIDTH:
        text = text[:-1]
    label = Image.new('RGB', (int(pen.textlength(text, font)) + 1, CELL), 'white')
    ImageDraw.Draw(label).text((0, (CELL - FONT_SIZE) // 2), text, 'black', font)
    return label


def encode(picture, file_format='PNG'):
    """Returns a Pillow image encoded as file content (bytes), in a format that Pillow supports."""
    file = io.BytesIO()
    picture.save(file, file_format, **({'quality': JPEG_QUALITY} if file_format == 'JPEG' else {}))
    return file.getvalue()
