"""The settings of how the network learns."""
import dataclasses
from typing import Optional

from common.image_sizes import WrittenSize
import condconv_layers
from condconv_layers import CondConvImplementation
from config import setting
import efficientnet_builder
import model_builder_factory

# Values of --depthwise_condconv. The network's CPU layers have a faster fold of their own.
CONDCONV_IMPLEMENTATIONS = {
    'auto': CondConvImplementation.FOLD,
    'fold': CondConvImplementation.FOLD,
    'loop': CondConvImplementation.LOOP,
    'experts': CondConvImplementation.EXPERTS_DEPTHWISE}

CROSS_ENTROPY, BINARY_CROSS_ENTROPY = 'cross_entropy', 'binary_cross_entropy'
# Values of --loss -> what makes probabilities of the logits of a network that learns with it.
LOSSES = {CROSS_ENTROPY: efficientnet_builder.SOFTMAX,
          BINARY_CROSS_ENTROPY: efficientnet_builder.SIGMOID}


@dataclasses.dataclass(frozen=True)
class OptimizationConfig:
    """How the network learns. These may change from one run in a model_dir to the next."""
    input_image_size: Optional[WrittenSize] = setting.row(
        None, "Side of the square input images in pixels, or HEIGHTxWIDTH; default: the model's "
        'own.', derived=lambda config, dataset: model_builder_factory.get_model_input_size(
            config.model.model_name), at_least=setting.SMALLEST_IMAGE_SIZE,
        at_most=setting.LARGEST_IMAGE_SIZE)
    dropout_rate: Optional[float] = setting.row(
        None, "Dropout before the classifier; default: the model's own.", at_least=0, below=1)
    survival_prob: Optional[float] = setting.row(
        None, 'Stochastic depth: probability that the last block is kept; default: 0.8.',
        above=0, at_most=1)
    routing_init_stddev: Optional[float] = setting.row(
        None, "Standard deviation of CondConv's initial routing kernels; default: Glorot's. Images "
        'so small that the last blocks see one or four positions train faster with 0.01.', above=0,
        at_most=100)
    batch_norm_momentum: Optional[float] = setting.row(
        None, 'Decay of the moving batch statistics; default: 0.99.', at_least=0, below=1)
    batch_norm_epsilon: Optional[float] = setting.row(
        None, 'Added to the batch variance; default: 0.001.', above=1.001e-5, at_most=1)
    data_format: str = setting.row(
        condconv_layers.CHANNELS_LAST, 'Layout of image tensors on the device.',
        choices=condconv_layers.DATA_FORMATS)
    depthwise_condconv: str = setting.row(
        'auto', 'How depthwise CondConv layers are computed. fold: the batch as channels of one '
        'convolution; loop: example by example, as in the 2021 port; experts: with each expert, '
        'then mixed, for as many times the work; auto: what suits the device. Results are the '
        'same.', choices=tuple(CONDCONV_IMPLEMENTATIONS))
    optimizer: str = setting.row(
        'rmsprop', 'The optimizer.',
        choices=('rmsprop', 'momentum', 'sgd', 'lars', 'adamw'))
    base_learning_rate: float = setting.row(
        0.016, 'Learning rate for 256 images per step; scaled with the global batch size.', above=0,
        at_most=1000)
    lr_schedule: str = setting.row(
        'exponential', 'How the learning rate changes after the warm-up: exponential by '
        '--lr_decay_factor every --lr_decay_epoch; cosine to 0; poly, the square of what is left, '
        'to 0.1, which is for LARS and its large rates; constant.',
        choices=('exponential', 'cosine', 'constant', 'poly'))
    lr_decay_factor: float = setting.row(
        0.97, 'Factor of the exponential schedule.', above=0, at_most=1)
    lr_decay_epoch: float = setting.row(
        2.4, 'Epochs between two steps of the exponential schedule.', at_least=0.001)
    lr_warmup_epochs: float = setting.row(
        5.0, 'Epochs over which the learning rate rises from 0.', at_least=0, at_most=100000)
    lr_range_min: float = setting.row(
        1e-5, 'lr_range: learning rate of the first step, for 256 images like '
        '--base_learning_rate.', above=0, at_most=1000)
    lr_range_max: float = setting.row(
        10.0, 'lr_range: learning rate of the last step.', above=0, at_most=1000)
    moving_average_decay: float = setting.row(
        0.9999, 'Decay of the exponential moving average of the weights; 0 is off.',
        at_least=0, below=1)
    weight_decay: float = setting.row(
        1e-5, 'L2 loss on all weights but those of batch norm. With --optimizer=adamw no part of '
        'the loss: each step takes this share, times the learning rate, off all weights but those '
        'of batch norm and biases.', at_least=0, at_most=1)
    label_smoothing: float = setting.row(
        0.1, 'Share of the label spread over all classes.', at_least=0, below=1)
    class_weights: Optional[str] = setting.row(
        None, 'Weights of the classes in the training loss. balanced: N / (K n) for a class with n '
        'of the N training images of K classes; or a CSV file with rows of class,weight.')
    loss: str = setting.row(
        CROSS_ENTROPY, 'What training minimizes and evaluations measure. cross_entropy: of the '
        'softmax; binary_cross_entropy: of a sigmoid for each class, the sum over the classes '
        '(arXiv:2110.00476). The probabilities of predictions and exports follow it.',
        choices=tuple(LOSSES))
    lars_weight_decay: float = setting.row(
        1e-5, 'Weight decay inside LARS (which then replaces --weight_decay).', at_least=0,
        at_most=1)
    lars_epsilon: float = setting.row(0.0, 'Epsilon of LARS.', at_least=0, at_most=1)
    nesterov: bool = setting.row(False, 'Nesterov momentum; with --optimizer=momentum only.')
    adam_beta1: float = setting.row(
        0.9, 'Decay of the mean gradient in AdamW.', at_least=0, below=1)
    adam_beta2: float = setting.row(
        0.999, 'Decay of the mean squared gradient in AdamW.', at_least=0, below=1)
    adam_epsilon: float = setting.row(1e-8, 'Epsilon of AdamW.', above=0, at_most=1)
    gradient_clip_norm: float = setting.row(
        0.0, 'Scale the gradients down where the norm of all of them together, averaged over the '
        'ranks and without the loss scale, is larger; 0 is off.', at_least=0)
    gradient_accumulation_steps: int = setting.row(
        1, 'Micro-batches of --batch_size images that a device computes one after another in a '
        'step; learning rate, steps and epochs count all of them.', at_least=1, at_most=256)
    freeze: Optional[str] = setting.row(
        None, 'Parts that keep the weights of --init_checkpoint, their batch norm in inference '
        'mode: stem, blocks_<i>, blocks_<first>-<last> and head, with commas between them; or '
        'all_but_head or all_but_classifier.')
    head_learning_rate_multiplier: float = setting.row(
        1.0, 'The head (last convolution and classifier) learns so many times faster.', above=0,
        at_most=1000)

    @property
    def class_activation(self):
        """What makes probabilities of the logits, one of `efficientnet_builder.CLASS_ACTIVATIONS`.
        """
        return LOSSES[self.loss]
