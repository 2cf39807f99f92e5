"""Sizes, counts and durations in human-readable form."""


def bytes_text(num_bytes):
    """Returns a size in decimal units, such as '3.1 GB'."""
    return _scaled(num_bytes, ('B', 'kB', 'MB', 'GB', 'TB'))


def count_text(count):
    """Returns a count in words, such as '13.3 million'."""
    return _scaled(count, ('', 'thousand', 'million', 'billion')).rstrip()


def secs_text(secs):
    """Returns a duration, such as '0.4 s', '12 s' or '1:02:05'."""
    if secs < 60:
        return f'{secs:.{0 if secs >= 10 else 1}f} s'
    hours, rest = divmod(int(secs), 3600)
    return f'{hours}:{rest // 60:02d}:{rest % 60:02d}'


def _scaled(number, units):
    *smaller, largest = units
    for unit in smaller:
        # Larger numbers would round up to 1000 with three digits.
        if number < 999.5:
            return f'{number:.3g} {unit}'
        number /= 1000
    return f'{number:.3g} {largest}'
