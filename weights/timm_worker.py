"""timm's side of `weights.comparison`. It runs under whichever interpreter has torch and timm."""
import json
import sys

RANDOM_SEED = 0


def main():
    job = json.loads(sys.argv[1])
    import numpy as np
    import timm
    import torch

    torch.manual_seed(RANDOM_SEED)
    images = torch.from_numpy(np.load(job['images'])).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        if job['task'] == 'make':
            model = timm.create_model(job['timm_name'])
            _randomize(model, torch)
            _calibrate(model, torch, images)
            torch.save(model.state_dict(), job['output'])
            return
        from safetensors.torch import load_file
        weights = load_file(job['weights'])
        model = timm.create_model(
            job['timm_name'], num_classes=len(weights['classifier.bias'])).eval()
        model.load_state_dict(weights, strict=True)
        np.save(job['output'], model(images).numpy())


def _randomize(model, torch):
    """Vectors, which begin as zeros and ones, become numbers that differ."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            if name.endswith('.weight'):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0, 0.1)


def _calibrate(model, torch, images):
    """Gives batch norm the statistics of the images, so that no activation grows or vanishes."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None      # the mean of all batches
            module.reset_running_stats()
    model.train()(images)


if __name__ == '__main__':
    main()
