"""The picture of a data set."""
import io

from PIL import Image
import pytest

from dataset import contact_sheet


@pytest.mark.parametrize('size, expected', [
    ((28, 28), (96, 96)), ((400, 300), (96, 72)), ((8000, 10), (96, 1)), ((10, 8000), (1, 96)),
    ((1, 1), (96, 96))])
def test_thumbnails_keep_the_proportions_and_at_least_a_pixel(size, expected):
    thumbnail = contact_sheet.thumbnail(Image.new('RGB', size))
    assert Image.open(io.BytesIO(thumbnail)).size == expected


def test_a_name_is_drawn_in_one_line():
    font = contact_sheet.ImageFont.load_default()
    assert contact_sheet.drawable('two\nlines\u2028and more', font) == 'two lines and more'
