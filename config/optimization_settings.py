"""The settings of training: input size, regularization, optimizer, schedule and loss."""
import dataclasses
from typing import Optional

from common.image_sizes import WrittenSize
import condconv_layers
from condconv_layers import CondConvImplementation
from config import setting
import efficientnet_builder
import model_builder_factory

# Values of --depthwise_condconv. On a CPU, the network uses a faster implementation of FOLD.
CONDCONV_IMPLEMENTATIONS = {
    'auto': CondConvImplementation.FOLD,
    'fold': CondConvImplementation.FOLD,
    'loop': CondConvImplementation.LOOP,
    'experts': CondConvImplementation.EXPERTS_DEPTHWISE}

CROSS_ENTROPY, BINARY_CROSS_ENTROPY = 'cross_entropy', 'binary_cross_entropy'
# Values of --loss -> the activation that turns logits into probabilities.
LOSSES = {CROSS_ENTROPY: efficientnet_builder.SOFTMAX,
          BINARY_CROSS_ENTROPY: efficientnet_builder.SIGMOID}


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the network is trained. These settings may change when a run resumes."""
    input_image_size: Optional[WrittenSize] = setting.row(
        None, 'Size of the input images in pixels, a number for squares or HEIGHTxWIDTH; default: '
        "the model's own.",
        derived=lambda config, dataset: model_builder_factory.get_model_input_size(
            config.model.model_name), at_least=setting.SMALLEST_IMAGE_SIZE,
        at_most=setting.LARGEST_IMAGE_SIZE)
    dropout_rate: Optional[float] = setting.row(
        None, "Dropout rate before the classifier; default: the model's own.", at_least=0, below=1)
    survival_prob: Optional[float] = setting.row(
        None, 'Stochastic depth: probability of keeping the last block; default: 0.8.',
        above=0, at_most=1)
    routing_init_stddev: Optional[float] = setting.row(
        None, 'Standard deviation of the initial routing kernels of CondConv; default: as in '
        "Glorot's initialization. With images so small that the last blocks have one or four "
        'positions, training is faster with 0.01.', above=0, at_most=100)
    batch_norm_momentum: Optional[float] = setting.row(
        None, 'Batch norm: decay of the moving statistics; default: 0.99.', at_least=0, below=1)
    batch_norm_epsilon: Optional[float] = setting.row(
        None, 'Batch norm: epsilon added to the variance; default: 0.001.', above=1.001e-5,
        at_most=1)
    data_format: str = setting.row(
        condconv_layers.CHANNELS_LAST, 'Memory layout of image tensors on the device.',
        choices=condconv_layers.DATA_FORMATS)
    depthwise_condconv: str = setting.row(
        'auto', 'Implementation of depthwise CondConv layers; all give the same results. fold: one '
        'convolution with the batch folded into the channels; loop: one convolution per example, '
        'as in the 2021 port; experts: one convolution per expert, whose outputs are mixed, which '
        'multiplies the work by the number of experts; auto: the implementation that suits the '
        'device.', choices=tuple(CONDCONV_IMPLEMENTATIONS))
    optimizer: str = setting.row(
        'rmsprop', 'Name of the optimizer.',
        choices=('rmsprop', 'momentum', 'sgd', 'lars', 'adamw'))
    base_learning_rate: float = setting.row(
        0.016, 'Learning rate for a global batch size of 256; scaled linearly to the actual global '
        'batch size.', above=0, at_most=1000)
    lr_schedule: str = setting.row(
        'exponential', 'Learning-rate schedule after the warm-up. exponential: multiplied by '
        '--lr_decay_factor every --lr_decay_epoch epochs; cosine: cosine decay to 0; poly: '
        'quadratic decay to 0.1, intended for the large rates of LARS; constant: no decay.',
        choices=('exponential', 'cosine', 'constant', 'poly'))
    lr_decay_factor: float = setting.row(
        0.97, 'Decay factor of the exponential schedule.', above=0, at_most=1)
    lr_decay_epoch: float = setting.row(
        2.4, 'Number of epochs between two decays of the exponential schedule.', at_least=0.001)
    lr_warmup_epochs: float = setting.row(
        5.0, 'Number of warm-up epochs, in which the learning rate rises linearly from 0.',
        at_least=0, at_most=100000)
    lr_range_min: float = setting.row(
        1e-5, 'lr_range: learning rate of the first step, for a global batch size of 256 like '
        '--base_learning_rate.', above=0, at_most=1000)
    lr_range_max: float = setting.row(
        10.0, 'lr_range: learning rate of the last step, for a global batch size of 256.', above=0,
        at_most=1000)
    moving_average_decay: float = setting.row(
        0.9999, 'Decay of the exponential moving average of the weights; 0 disables the average.',
        at_least=0, below=1)
    weight_decay: float = setting.row(
        1e-5, 'Factor of the L2 loss on all weights except those of batch norm. With '
        '--optimizer=adamw, the decay is decoupled from the loss: each step reduces all weights '
        'except those of batch norm and biases by this factor times the learning rate.',
        at_least=0, at_most=1)
    label_smoothing: float = setting.row(
        0.1, 'Label smoothing: share of the label that is distributed over all classes.',
        at_least=0, below=1)
    class_weights: Optional[str] = setting.row(
        None, 'Class weights in the training loss: balanced, or a CSV file with rows of '
        'class,weight. balanced: weight N / (K n) for a class with n of the N training images of '
        'K classes. Default: all weights are 1.')
    loss: str = setting.row(
        CROSS_ENTROPY, 'Loss of training and evaluation. cross_entropy: softmax cross entropy; '
        'binary_cross_entropy: sigmoid cross entropy, summed over the classes (arXiv:2110.00476). '
        'Predictions and exports use the same activation for their probabilities.',
        choices=tuple(LOSSES))
    lars_weight_decay: float = setting.row(
        1e-5, 'Weight decay of LARS. With --optimizer=lars, it replaces --weight_decay.',
        at_least=0, at_most=1)
    lars_epsilon: float = setting.row(0.0, 'Epsilon of LARS.', at_least=0, at_most=1)
    nesterov: bool = setting.row(
        False, 'Use Nesterov momentum; requires --optimizer=momentum.')
    adam_beta1: float = setting.row(
        0.9, 'AdamW: decay of the mean gradient.', at_least=0, below=1)
    adam_beta2: float = setting.row(
        0.999, 'AdamW: decay of the mean squared gradient.', at_least=0, below=1)
    adam_epsilon: float = setting.row(1e-8, 'Epsilon of AdamW.', above=0, at_most=1)
    gradient_clip_norm: float = setting.row(
        0.0, 'Maximum global gradient norm, after averaging over the ranks and removing the loss '
        'scale; larger gradients are scaled down; 0 disables clipping.', at_least=0)
    gradient_accumulation_steps: int = setting.row(
        1, 'Number of micro-batches of --batch_size images that a device processes in sequence per '
        'step; learning rate, steps and epochs are based on the whole batch.', at_least=1,
        at_most=256)
    freeze: Optional[str] = setting.row(
        None, 'Parts of the network to freeze, with batch norm in inference mode: a '
        'comma-separated list of stem, blocks_<i>, blocks_<first>-<last> and head; or '
        'all_but_head or all_but_classifier. Frozen parts keep the weights of --init_checkpoint. '
        'Default: none.')
    head_learning_rate_multiplier: float = setting.row(
        1.0, 'Learning-rate multiplier of the head (last convolution and classifier).', above=0,
        at_most=1000)

    @property
    def class_activation(self):
        """The activation that turns logits into probabilities, one of
        `efficientnet_builder.CLASS_ACTIVATIONS`."""
        return LOSSES[self.loss]
