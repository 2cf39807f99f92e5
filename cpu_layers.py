"""Faster CPU implementations of the expensive layers, for TensorFlow 1.15.

Outputs and gradients of each function equal those of the plain ops that it replaces, up to
rounding. The gradients are written by hand to make few passes over large tensors, because on a CPU
a training step of these networks is bound by memory bandwidth, not by arithmetic. Times in the
comments are for 16 images of [56, 56, 144], forward and backward, on 2 cores.
"""
import tensorflow.compat.v1 as tf

# Minimum channels per group and maximum number of groups in `depthwise_conv2d`. Smaller groups cost
# more than they save. With these limits the depthwise layers of B0 take 6.4 ms for one image
# (forward); with TensorFlow's op they take 8.8 ms.
_LEAST_GROUP_CHANNELS = 120
_MAX_GROUPS = 8


@tf.custom_gradient
def swish(x):
    """Returns x * sigmoid(x); saves x and the output for the backward pass, but not the sigmoid."""
    y = _times_sigmoid(x, x)
    return y, lambda dy: _swish_gradient(x, y, dy)


def _times_sigmoid(y, x):
    """Returns y * sigmoid(x) in one pass: the gradient of softplus is the same function."""
    return tf.raw_ops.SoftplusGrad(gradients=y, features=x)


def _swish_gradient(x, y, dy):
    """Returns the gradient of swish: dy s (1 + x - y), where s = sigmoid(x) and y = s x.

    Forward and backward passes together take 10 ms, with plain ops 16 ms.
    """
    # Without the dependency, the forward pass would compute the difference and save it.
    with tf.control_dependencies([dy]):
        difference = x - y
    return _times_sigmoid(dy * difference + dy, x)


def depthwise_conv2d(inputs, kernel, stride=1):
    """Depthwise convolution with 'SAME' padding and one filter per channel.

    TensorFlow's gradient kernels, which `_depthwise` also uses in the forward pass, run one thread
    per image. A single image with thousands of channels therefore uses one core and exceeds its
    cache. Its channels are split into groups, each convolved by separate ops.

    Args:
      inputs: float [batch, height, width, channels].
      kernel: float [kh, kw, channels, 1], kh and kw odd.
      stride: int, for both axes.

    Returns:
      float [batch, new_height, new_width, channels].
    """
    num_groups = _num_groups(inputs)

    def in_groups(function, *operands):
        """Applies `function` to each channel group; operands are (tensor, channel axis)."""
        groups = zip(*(_split(tensor, num_groups, axis) for tensor, axis in operands))
        return [function(*group, stride) for group in groups]

    @tf.custom_gradient
    def convolve(inputs, kernel):
        outputs = tf.concat(
            in_groups(_depthwise, (inputs, 3), (_forward_kernel(kernel, stride), 2)), 3)

        def gradient(dy):
            operands = (inputs, 3), (kernel, 2), (dy, 3)
            return (tf.concat(in_groups(_depthwise_input_gradient, *operands), 3),
                    tf.concat(in_groups(_depthwise_kernel_gradient, *operands), 2))

        return outputs, gradient

    return _with_strided_shape(convolve(inputs, kernel), inputs, stride)


def swish_depthwise_conv2d(inputs, kernel, stride=1):
    """Returns `depthwise_conv2d(swish(inputs), kernel, stride)` and saves only its inputs.

    Swish is recomputed in the backward pass to save memory, because the outputs of the expansions
    are most of the saved activations. For condconv-b0-8e at batch 32 this saves 0.3 of 4.1 GB.
    """
    @tf.custom_gradient
    def convolve(x, kernel):
        outputs = _depthwise(_times_sigmoid(x, x), _forward_kernel(kernel, stride), stride)

        def gradient(dz):
            with tf.control_dependencies([dz]):
                y = _times_sigmoid(x, x)
            dy = _depthwise_input_gradient(y, kernel, dz, stride)
            return _swish_gradient(x, y, dy), _depthwise_kernel_gradient(y, kernel, dz, stride)

        return outputs, gradient

    return _with_strided_shape(convolve(inputs, kernel), inputs, stride)


def _depthwise(images, forward_kernel, stride):
    """Convolves images with a `_forward_kernel`; stride 1 uses the op of the input gradient.

    At stride 1 the input gradient is a convolution with the filters rotated by 180 degrees, and
    TensorFlow computes it faster than the forward op (9 ms instead of 16 ms).
    """
    if stride == 1:
        return _depthwise_input_gradient(images, forward_kernel, images, stride)
    return tf.nn.depthwise_conv2d(images, forward_kernel, [1, stride, stride, 1], 'SAME')


def _forward_kernel(kernel, stride):
    """Returns the kernel for `_depthwise`, which at stride 1 is rotated by 180 degrees.

    Gathering the rows takes a tenth of the time of `tf.reverse`.
    """
    if stride > 1:
        return kernel
    height, width, channels, _ = kernel.shape.as_list()
    rows = tf.reshape(kernel, [height * width, -1])
    rows = tf.gather(rows, list(range(height * width))[::-1])
    return tf.reshape(rows, [height, width, channels or -1, 1])


def _depthwise_input_gradient(images, kernel, dy, stride):
    return tf.nn.depthwise_conv2d_backprop_input(
        tf.shape(images), kernel, dy, [1, stride, stride, 1], 'SAME')


def _depthwise_kernel_gradient(images, kernel, dy, stride):
    return tf.nn.depthwise_conv2d_backprop_filter(
        images, tf.shape(kernel), dy, [1, stride, stride, 1], 'SAME')


def _with_strided_shape(outputs, inputs, stride):
    outputs.set_shape([inputs.shape[0], *(size and -(-size // stride) for size in
                                          inputs.shape.as_list()[1:3]), inputs.shape[3]])
    return outputs


def _num_groups(images):
    batch, channels = images.shape[0].value, images.shape[3].value
    if batch != 1 or channels is None:
        return 1
    return max(1, min(_MAX_GROUPS, channels // _LEAST_GROUP_CHANNELS))


def _split(tensor, num_groups, axis):
    """Splits a tensor along an axis into parts of nearly equal size."""
    if num_groups == 1:
        return [tensor]
    size = tensor.shape[axis].value
    bounds = [size * index // num_groups for index in range(num_groups + 1)]
    return tf.split(tensor, [end - start for start, end in zip(bounds, bounds[1:])], axis)


def batch_inward(images):
    """Transposes [batch, height, width, channels] to [height, width, batch, channels].

    Gathering rows of channels takes a quarter of the time of `tf.transpose`.
    """
    batch, height, width, channels = _sizes(images)
    return tf.reshape(_swap(images, batch, height * width, channels),
                      [height, width, batch, channels])


def batch_outward(images):
    """Transposes [height, width, batch, channels] to [batch, height, width, channels]."""
    height, width, batch, channels = _sizes(images)
    return tf.reshape(_swap(images, height * width, batch, channels),
                      [batch, height, width, channels])


def _sizes(tensor):
    """Returns the size of each axis: an int if it is static, else a scalar tensor."""
    dynamic = tf.shape(tensor)
    return [dynamic[axis] if size is None else size
            for axis, size in enumerate(tensor.shape.as_list())]


def _swap(tensor, first, second, channels):
    """Transposes the rows of a tensor of [first, second, channels] to [second, first]."""
    # With one image or one position, the order of the rows does not change.
    if 1 in (first, second):
        return tensor
    order = tf.transpose(tf.reshape(tf.range(first * second), [first, second]))
    return tf.gather(tf.reshape(tensor, [-1, channels]), tf.reshape(order, [-1]))


def pointwise_conv2d(inputs, kernel):
    """Computes a convolution of stride 1 with a kernel [1, 1, in, out] as one matrix product.

    The gradients are matrix products too; the gradients of Conv2D copy their operands first.
    """
    rows = tf.reshape(inputs, [-1, inputs.shape[3].value])
    outputs = tf.matmul(rows, tf.squeeze(kernel, [0, 1]))
    return tf.reshape(outputs, _with_channels(inputs, kernel.shape[3].value))


def gated_pointwise_conv2d(inputs, gate, kernel):
    """Computes `pointwise_conv2d(gate * inputs, kernel)` by applying the gate to the kernel.

    One pass over a few thousand weights per image replaces four passes over its activations.

    Args:
      inputs: float [batch, height, width, in].
      gate: float [batch, 1, 1, in].
      kernel: float [1, 1, in, out].
    """
    in_channels, out_channels = kernel.shape[2].value, kernel.shape[3].value
    kernels = tf.reshape(gate, [-1, in_channels, 1]) * tf.squeeze(kernel, [0, 1])
    height, width = inputs.shape[1:3]
    positions = height * width
    rows = tf.reshape(inputs, [-1, positions.value, in_channels])
    outputs = tf.matmul(rows, kernels)
    return tf.reshape(outputs, _with_channels(inputs, out_channels))


def batch_norm(inputs, gamma, beta, epsilon):
    """Normalizes a batch with its own statistics.

    TensorFlow's kernels use a fraction of the memory bandwidth. Here each pass is a plain op or a
    matrix product, and a training step of condconv-b0-8e at batch 32 takes 0.89 of the CPU time.
    The centered inputs are saved in place of the inputs. TensorFlow has to keep freed memory, as
    with TF_CPU_ALLOCATOR_USE_BFC=true, which main.py sets; with malloc this function is slower than
    the kernels.

    Args:
      inputs: float [batch, height, width, channels], of static shape.
      gamma, beta: float [channels].
      epsilon: added to the variance.

    Returns:
      the normalized outputs, and the mean and (biased) variance [channels] of the inputs, both
      without a gradient.
    """
    batch, height, width, channels = inputs.shape.as_list()
    num_values = batch * height * width

    @tf.custom_gradient
    def normalized(x, gamma, beta):
        weights = tf.fill([1, 1, height * width], 1.0 / num_values)

        def channel_means(images):
            # A matrix product for each image takes half of the time of `tf.reduce_mean`.
            return tf.reduce_sum(tf.matmul(weights, images), [0, 1])

        mean = channel_means(x)
        centered = tf.nn.bias_add(x, -mean)  # faster than x - mean
        variance = channel_means(centered * centered)
        inverse_stddev = tf.rsqrt(variance + epsilon)
        scale = gamma * inverse_stddev
        y = tf.nn.bias_add(centered * scale, beta)

        def gradient(dy, *_):
            # With x^ = centered / stddev: dx = gamma / stddev * (dy - E[dy] - x^ E[dy x^]).
            mean_dy = channel_means(dy)
            slope = inverse_stddev * channel_means(dy * centered)
            dx = (tf.nn.bias_add(dy * scale, -scale * mean_dy)
                  - centered * (scale * inverse_stddev * slope))
            return dx, num_values * slope, num_values * mean_dy

        return (y, mean, variance), gradient

    outputs, mean, variance = normalized(
        tf.reshape(inputs, [-1, height * width, channels]), gamma, beta)
    return (tf.reshape(outputs, _with_channels(inputs, channels)),
            tf.stop_gradient(mean), tf.stop_gradient(variance))


def pointwise_conv2d_batch_norm(inputs, kernel, gamma, beta, epsilon):
    """Computes a 1x1 convolution and batch norm with batch statistics as one linear map.

    A 1x1 convolution is x = u W. The mean and variance of the outputs follow from those of the
    inputs: E[x] = E[u] W and Var[x] = diag(W' Cov[u] W), and so do the two sums over the outputs
    in the gradient of batch norm. The large tensor, the output of an expansion, is written once and
    read twice, which takes 5 ms instead of the 38 ms of batch norm, and x is not saved. This
    implementation is faster if there are more output channels than input channels.

    Args:
      inputs: float [batch, height, width, in].
      kernel: float [1, 1, in, out].
      gamma, beta: float [out].
      epsilon: added to the variance.

    Returns:
      the normalized outputs, and their mean and (biased) variance [out] before normalization, both
      without a gradient.
    """
    in_channels, out_channels = kernel.shape[2].value, kernel.shape[3].value

    @tf.custom_gradient
    def normalized(u, w, gamma, beta):
        num_rows = u.shape[0].value or tf.cast(tf.shape(u)[0], tf.float32)
        input_mean = tf.reduce_mean(u, 0)
        u = u - input_mean
        cov_w = tf.matmul(tf.matmul(u, u, transpose_a=True) / num_rows, w)
        variance = tf.reduce_sum(w * cov_w, 0)
        inverse_stddev = tf.rsqrt(variance + epsilon)
        scaled_w = w * (gamma * inverse_stddev)
        y = tf.nn.bias_add(tf.matmul(u, scaled_w), beta)

        def gradient(dy, *_):
            # With x^ = u W / stddev: dx = gamma / stddev * (dy - E[dy] - x^ E[dy x^]), dW = u' dx
            # and du = dx W'. dx itself is never computed.
            d_beta = tf.raw_ops.BiasAddGrad(out_backprop=dy)
            u_dy = tf.matmul(u, dy, transpose_a=True)
            d_gamma = inverse_stddev * tf.reduce_sum(w * u_dy, 0)
            slope = inverse_stddev * d_gamma
            dw = gamma * inverse_stddev * (u_dy - cov_w * slope)
            through_u = tf.matmul(scaled_w * (slope / num_rows), w, transpose_b=True)
            shift = tf.matmul(scaled_w, tf.expand_dims(d_beta / num_rows, 1))
            du = (tf.matmul(dy, scaled_w, transpose_b=True)
                  - tf.nn.bias_add(tf.matmul(u, through_u), tf.squeeze(shift, 1)))
            return du, dw, d_gamma, d_beta

        mean = tf.squeeze(tf.matmul(tf.expand_dims(input_mean, 0), w), 0)
        return (y, mean, variance), gradient

    outputs, mean, variance = normalized(
        tf.reshape(inputs, [-1, in_channels]), tf.squeeze(kernel, [0, 1]), gamma, beta)
    outputs = tf.reshape(outputs, _with_channels(inputs, out_channels))
    return outputs, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _with_channels(images, channels):
    """Returns the shape of `images` with another number of channels, the batch size as -1."""
    return [-1, *images.shape.as_list()[1:3], channels]
