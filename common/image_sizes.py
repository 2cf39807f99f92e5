"""The size of images: how flags and JSON write it, and what everything else takes."""
import re
from typing import NamedTuple
from typing import Union

# As flags and JSON have it: an int for a square, else text such as '224x288', height first.
WrittenSize = Union[int, str]
_TEXT = re.compile(r'(-?\d+)(?:x(-?\d+))?', re.ASCII)


class ImageSize(NamedTuple):
    """Height and width of images in pixels."""
    height: int
    width: int

    @classmethod
    def of(cls, size):
        """Returns the `ImageSize` of whatever stands for one.

        Args:
          size: a pair (height, width), a `WrittenSize`, or the text of one, such as '224'.

        Raises:
          ValueError: the text is none.
        """
        if isinstance(size, str):
            match = _TEXT.fullmatch(size)
            if not match:
                raise ValueError(
                    'neither a number nor HEIGHTxWIDTH; write it like 224 or 224x288')
            return cls(int(match[1]), int(match[2] or match[1]))
        return cls(size, size) if isinstance(size, int) else cls(*size)

    @property
    def written(self):
        """The `WrittenSize`."""
        return self.height if self.height == self.width else f'{self.height}x{self.width}'

    def __str__(self):
        return str(self.written)


def is_written(value):
    """Whether a JSON value is a `WrittenSize`; True and False are none."""
    if not isinstance(value, str):
        return type(value) is int
    return bool(_TEXT.fullmatch(value))
