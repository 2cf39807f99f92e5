"""Fast conversions between uint8 and int32 or float32 on a CPU.

TensorFlow 1.15 converts uint8 to int32 or float32, and back, one value at a time. These functions
return the same numbers in a third to half of the time.
"""
import tensorflow.compat.v1 as tf

# The float32 values from 2^23 to 2^24 are exactly the integers; their last 23 bits count from 0.
_BITS_OF_2_23 = 0x4b000000
_2_23 = 2.0 ** 23


def to_int32(numbers):
    """Converts uint8 or uint16 to int32."""
    # A cast to uint32, which has the same bits, takes a third of the time of a cast to int32.
    return tf.bitcast(tf.cast(numbers, tf.uint32), tf.int32)


def to_float(numbers):
    """Converts uint8 or uint16 to float32."""
    return tf.bitcast(to_int32(numbers) + _BITS_OF_2_23, tf.float32) - _2_23


def to_index(numbers):
    """Converts float32 to int32; the values are integers in [0, 2^23]."""
    return tf.bitcast(numbers + _2_23, tf.int32) - _BITS_OF_2_23


def cut_to_uint8(pixels):
    """Converts float32 to uint8: clips to [0, 255] and truncates."""
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


def round_to_uint8(pixels):
    """Converts float32 to uint8: clips to [0, 255] and rounds, halves to even."""
    bits = tf.bitcast(tf.clip_by_value(pixels, 0.0, 255.0) + _2_23, tf.uint32)
    return tf.cast(bits, tf.uint8)
