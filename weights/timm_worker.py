"""Runs timm for `weights.comparison`, in a Python interpreter with torch and timm."""
import argparse

MAKE, PREDICT = TASKS = 'make', 'predict'
RANDOM_SEED = 0


def main():
    options = _parse_options()
    import numpy as np
    import timm
    import torch

    torch.manual_seed(RANDOM_SEED)
    images = torch.from_numpy(np.load(options.images)).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        if options.task == MAKE:
            model = timm.create_model(options.timm_name)
            _randomize(model, torch)
            _calibrate(model, torch, images)
            torch.save(model.state_dict(), options.output)
            return
        from safetensors.torch import load_file
        weights = load_file(options.weights)
        model = timm.create_model(
            options.timm_name, num_classes=len(weights['classifier.bias'])).eval()
        model.load_state_dict(weights, strict=True)
        np.save(options.output, model(images).numpy())


def _parse_options():
    parser = argparse.ArgumentParser()
    parser.add_argument('--helpfull', action='help', help='same as --help')
    parser.add_argument('--task', required=True, choices=TASKS)
    parser.add_argument('--timm_name', required=True)
    parser.add_argument('--images', required=True, help='.npy file of normalized images')
    parser.add_argument('--weights', help='.safetensors file for the task predict')
    parser.add_argument('--output', required=True, help='output: .pth file of make, .npy file of '
                        'predict')
    return parser.parse_args()


def _randomize(model, torch):
    """Randomizes vectors, which are initialized to zeros and ones."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            if name.endswith('.weight'):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1)


def _calibrate(model, torch, images):
    """Sets the batch-norm statistics to those of the images, which keeps activations bounded."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None      # the mean of all batches
            module.reset_running_stats()
    model.train()(images)


if __name__ == '__main__':
    main()
