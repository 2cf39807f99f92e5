"""Conversions between uint8 and the number types that TensorFlow's CPU kernels are fast at.

TensorFlow 1.15 converts uint8 to int32 and to float32, and back, value by value. The detours here
take a half to a third of the time and give the same numbers.
"""
import tensorflow.compat.v1 as tf

# The floats from 2^23 to 2^24 are the whole numbers there, and the last 23 bits count them.
_BITS_OF_2_23 = 0x4b000000
_2_23 = 2.0 ** 23


def to_int32(numbers):
    """uint8 or uint16 -> int32."""
    # The conversion to uint32, whose bits are the same, takes a third of the time.
    return tf.bitcast(tf.cast(numbers, tf.uint32), tf.int32)


def to_float(numbers):
    """uint8 or uint16 -> float32."""
    return tf.bitcast(to_int32(numbers) + _BITS_OF_2_23, tf.float32) - _2_23


def to_index(numbers):
    """float32, whole numbers in 0..2^23 -> int32."""
    return tf.bitcast(numbers + _2_23, tf.int32) - _BITS_OF_2_23


def cut_to_uint8(pixels):
    """float32 -> uint8: clipped, and cut off instead of rounded."""
    return tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)


def round_to_uint8(pixels):
    """float32 -> uint8: clipped and rounded, halves to even."""
    bits = tf.bitcast(tf.clip_by_value(pixels, 0.0, 255.0) + _2_23, tf.uint32)
    return tf.cast(bits, tf.uint8)
