"""The PyTorch contenders of `benchmarks.protocol`: timm's network, eager or compiled.

Tensors are channels last. Any interpreter with torch and timm can run this module.
"""
import os
import time

from benchmarks import protocol
from weights import origin

LEARNING_RATE = 0.02


def main():
    options = protocol.parse_options()
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import RMSpropTF
    from timm.utils import ModelEmaV2
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    start = time.monotonic()
    is_training = options.task == protocol.TRAIN
    model = timm.create_model(origin.timm_name(options.model_name), drop_path_rate=0.2)
    model = model.to(memory_format=torch.channels_last).train(is_training)
    images = torch.randn(options.batch_size, 3, *options.image_size).to(
        memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, [options.batch_size])
    loss_function = LabelSmoothingCrossEntropy(0.1)
    if is_training:
        average = ModelEmaV2(model, decay=0.9999)
        optimizer = RMSpropTF(model.parameters(), lr=LEARNING_RATE, alpha=0.9, eps=1e-3,
                              momentum=0.9, weight_decay=1e-5)
    # The average uses `model`, because torch.compile renames the weights.
    network = torch.compile(model) if options.contender == protocol.PYTORCH_COMPILE else model
    build_secs = time.monotonic() - start

    def train_step():
        optimizer.zero_grad()
        loss = loss_function(network(images), labels)
        loss.backward()
        optimizer.step()
        average.update(model)
        return loss.item()

    def infer_step():
        with torch.inference_mode():
            return loss_function(network(images), labels).item()

    step = train_step if is_training else infer_step
    start = time.monotonic()
    loss_first = step()
    protocol.serve(step, dict(
        build_secs=build_secs, first_step_secs=time.monotonic() - start, loss_first=loss_first,
        step_nodes=None, graph_nodes=None))


if __name__ == '__main__':
    main()
